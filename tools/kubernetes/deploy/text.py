"""Texts of the cluster, which others wrote."""


def printable(text: object) -> str:
    """Return a text without what would steer the terminal."""
    return "".join(each if each.isprintable() or each in "\n\t" else repr(each)[1:-1] for each in str(text))
