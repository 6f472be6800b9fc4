"""Files that others look at while they change."""

from pathlib import Path


def replace_file(file: Path, text: str) -> None:
    """Have a file another text at once: who looks while it is written would see half of it, or nothing."""
    new = file.with_suffix(".new")
    new.write_text(text, "utf-8")
    new.replace(file)
