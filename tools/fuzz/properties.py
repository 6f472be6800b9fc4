"""What targets demand of errors and of other texts that a person reads."""

import re

SECRET = "hunter2"  # noqa: S105 (what the seeds have for a password)


def check_shown(text: str, longest: int = 20_000) -> None:
    """Demand lines that a terminal and a log show as they are, and that have an end.

    Raises:
        AssertionError: they would forge a line or move a cursor, or are too long.

    """
    assert len(text) <= longest, f"{len(text)} characters"
    assert all(line.isprintable() for line in text.split("\n")), repr(text)


def check_hidden(text: str, *secrets: str) -> None:
    """Demand that a text has none of some secrets; those of fewer than four characters stand in any text.

    Raises:
        AssertionError: it has one.

    """
    for secret in secrets:
        assert len(secret) < 4 or secret not in text, (secret, text)  # noqa: PLR2004


def words(text: str) -> list[str]:
    """Return the words of an input that are long enough to be known again."""
    return re.findall(r"\w{6,}", text)
