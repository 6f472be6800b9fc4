"""Manifests, and what is declared external, as the lint reads them."""

import re

from k8s.checks.lint import EXTERNAL, RULES, check, read_external
from tools.fuzz.input_file import input_file
from tools.fuzz.properties import SECRET, check_hidden

_PASSWORD = re.compile(rb"password: [!&*|>%@`'\"]*" + SECRET.encode())
"""One that stands as a text, or as what YAML takes a text without quotes for: a tag, an alias and so on."""

_declared = read_external(EXTERNAL)


def fuzz(data: bytes) -> None:
    """Whatever is in a file, the lint says something of it, but not its secrets."""
    file = input_file(data)
    findings = list(check(file, _declared, RULES))
    for finding in findings:
        # Of a Secret; elsewhere it is no secret, as in the name of an object.
        if data.count(SECRET.encode()) == len(_PASSWORD.findall(data)) == 1:
            check_hidden(str(finding), SECRET)
    try:
        read_external(file)
    except ValueError as error:
        assert "\n" not in str(error)
