"""Whether a route of Traefik may take a call, and what it does with one."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from k8s.checks.manifests import Manifest, Manifests, find

type _Tokens = Sequence[re.Match[str]]
type _Matcher = Callable[[re.Match[str]], set[bool]]

_TOKEN = re.compile(r"\s*(&&|\|\||!|\(|\)|(?P<name>\w+)\((?P<arguments>(?:`[^`]*`|\"[^\"]*\"|[\s,])*)\))")


class NoRuleError(ValueError):
    """A text is no rule of Traefik's; the message quotes it."""


def traefik_answers(rule: str, path: str) -> set[bool]:
    """Return whether a rule such as Host(`a.b`) && PathPrefix(`/user.UserService/`) takes a path.

    Raises:
        NoRuleError: it can't be read.

    """
    return _answers(rule, partial(_of_path, path))


def needs_host(rule: str) -> bool:
    """Return whether a rule takes only calls to hosts that it names with Host: TLS options are for those."""
    return True not in _answers(rule, _of_other_hosts)


def hosts(rule: str) -> set[str]:
    """Return the hosts that a rule names with Host."""
    matchers = [token for token in _TOKEN.finditer(rule) if token["name"] == "Host"]
    return {name.lower() for token in matchers for name in _arguments(token)}


def middlewares(
    manifests: Manifests, references: Iterable[Manifest], namespace: str, seen: Sequence[Manifest] = ()
) -> Iterator[Manifest | None]:
    """Yield the spec of each Middleware, those within chains too, and None for one that is not here."""
    for reference in references:
        where = reference.get("namespace") or namespace
        found = manifests.named("Middleware", reference["name"], where)
        spec = found and (found.get("spec") or {})
        if spec and "chain" in spec and spec not in seen:
            inner = [each for _, each in find(spec, "chain.middlewares[]")]
            yield from middlewares(manifests, inner, where, [*seen, spec])
        else:
            yield spec


def _answers(rule: str, match: _Matcher) -> set[bool]:
    tokens = list(_TOKEN.finditer(rule))
    mistake = NoRuleError(f"{rule!r} is no rule of Traefik's")
    if "".join(token[0] for token in tokens) != rule.rstrip():
        raise mistake
    try:
        answers, rest = _or(tokens, match)
    except IndexError:
        raise mistake from None
    if rest:
        raise mistake
    return answers


def _or(tokens: _Tokens, match: _Matcher) -> tuple[set[bool], _Tokens]:
    answers, tokens = _and(tokens, match)
    while tokens and tokens[0][1] == "||":
        right, tokens = _and(tokens[1:], match)
        answers = {one or other for one in answers for other in right}
    return answers, tokens


def _and(tokens: _Tokens, match: _Matcher) -> tuple[set[bool], _Tokens]:
    answers, tokens = _term(tokens, match)
    while tokens and tokens[0][1] == "&&":
        right, tokens = _term(tokens[1:], match)
        answers = {one and other for one in answers for other in right}
    return answers, tokens


def _term(tokens: _Tokens, match: _Matcher) -> tuple[set[bool], _Tokens]:
    if tokens[0][1] == "!":
        answers, tokens = _term(tokens[1:], match)
        return {not answer for answer in answers}, tokens
    if tokens[0][1] == "(":
        answers, tokens = _or(tokens[1:], match)
        return answers, tokens[1:]
    return match(tokens[0]), tokens[1:]


def _arguments(token: re.Match[str]) -> list[str]:
    return re.findall(r"[`\"]([^`\"]*)[`\"]", token["arguments"])


def _of_path(path: str, token: re.Match[str]) -> set[bool]:
    arguments = _arguments(token)
    match token["name"]:
        case "Path":
            return {path in arguments}
        case "PathPrefix":
            return {any(path.startswith(prefix) for prefix in arguments)}
        case "PathRegexp":
            try:
                return {any(re.search(pattern, path) for pattern in arguments)}
            except re.PatternError:  # Go's language is another one
                return {True, False}
    return {True, False}


def _of_other_hosts(token: re.Match[str]) -> set[bool]:
    return {False} if token["name"] == "Host" else {True, False}
