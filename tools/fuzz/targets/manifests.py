"""Manifests, and what is declared external, as the lint reads them."""

import os
import re
from pathlib import Path

from k8s.checks.lint import EXTERNAL, RULES, check, read_external
from tools.fuzz.properties import SECRET, check_hidden

_file = os.memfd_create("manifests.yaml")
_PATH = Path(f"/proc/self/fd/{_file}")
_PASSWORD = re.compile(rb"password: [!&*|>%@`'\"]*" + SECRET.encode())
"""One that stands as a text, or as what YAML takes a text without quotes for: a tag, an alias and so on."""

_declared = read_external(EXTERNAL)


def fuzz(data: bytes) -> None:
    """Whatever is in a file, the lint says something of it, but not its secrets."""
    os.ftruncate(_file, 0)
    os.pwrite(_file, data, 0)
    findings = list(check(_PATH, _declared, RULES))
    for finding in findings:
        # Of a Secret; elsewhere it is no secret, as in the name of an object.
        if data.count(SECRET.encode()) == len(_PASSWORD.findall(data)) == 1:
            check_hidden(str(finding), SECRET)
    try:
        read_external(_PATH)
    except ValueError as error:
        assert "\n" not in str(error)
