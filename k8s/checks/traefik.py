"""Whether a route of Traefik may take a call."""

import re
from collections.abc import Sequence

type _Tokens = Sequence[re.Match[str]]

_TOKEN = re.compile(r"\s*(&&|\|\||!|\(|\)|(?P<name>\w+)\((?P<arguments>(?:`[^`]*`|\"[^\"]*\"|[\s,])*)\))")


def traefik_answers(rule: str, path: str) -> set[bool]:
    """Return whether a rule such as Host(`a.b`) && PathPrefix(`/user.UserService/`) takes a path.

    Raises:
        ValueError: it can't be read.

    """
    tokens = list(_TOKEN.finditer(rule))
    if "".join(token[0] for token in tokens) != rule.rstrip():
        raise ValueError(f"{rule!r} is no rule of Traefik's")
    answers, rest = _or(tokens, path)
    if rest:
        raise ValueError(f"{rule!r} is no rule of Traefik's")
    return answers


def _or(tokens: _Tokens, path: str) -> tuple[set[bool], _Tokens]:
    answers, tokens = _and(tokens, path)
    while tokens and tokens[0][1] == "||":
        right, tokens = _and(tokens[1:], path)
        answers = {one or other for one in answers for other in right}
    return answers, tokens


def _and(tokens: _Tokens, path: str) -> tuple[set[bool], _Tokens]:
    answers, tokens = _term(tokens, path)
    while tokens and tokens[0][1] == "&&":
        right, tokens = _term(tokens[1:], path)
        answers = {one and other for one in answers for other in right}
    return answers, tokens


def _term(tokens: _Tokens, path: str) -> tuple[set[bool], _Tokens]:
    if tokens[0][1] == "!":
        answers, tokens = _term(tokens[1:], path)
        return {not answer for answer in answers}, tokens
    if tokens[0][1] == "(":
        answers, tokens = _or(tokens[1:], path)
        return answers, tokens[1:]
    return _matcher(tokens[0], path), tokens[1:]


def _matcher(token: re.Match[str], path: str) -> set[bool]:
    arguments = re.findall(r"[`\"]([^`\"]*)[`\"]", token["arguments"])
    match token["name"]:
        case "Path":
            return {path in arguments}
        case "PathPrefix":
            return {any(path.startswith(prefix) for prefix in arguments)}
        case "PathRegexp":
            return {any(re.search(pattern, path) for pattern in arguments)}
    return {True, False}
