import click
import pytest
from click.testing import CliRunner

from tools.lab.report.output import OutputFile, write


@click.command()
@click.argument("file", type=OutputFile())
def command(file):
    """Say what is there before anything is written, and write."""
    click.echo(f"before: {file.stat().st_size if file.exists() else 'no'} bytes")
    write(file, lambda report: report["text"], {"text": "a report"})


def run(file):
    """Return how the command ended."""
    return CliRunner().invoke(command, [str(file)])


def test_a_file_is_as_it_was_until_it_is_written(tmp_path):
    """An older report is kept if what makes the new one fails, and a new file does not stay empty."""
    file = tmp_path / "report.html"
    assert run(file).output == f"before: no bytes\nwritten: {file}\n"
    assert run(file).output == f"before: 8 bytes\nwritten: {file}\n"
    assert file.read_text() == "a report"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("missing/report.html", "report.html: No such file or directory"),
        ("file/report.html", "report.html: Not a directory"),
        ("", "is a directory"),
    ],
)
def test_what_can_not_be_written_is_told_at_once(tmp_path, name, told):
    """Nobody plays five minutes for a report that has no place."""
    (tmp_path / "file").touch()
    ended = run(tmp_path / name)
    assert ended.exit_code == 2
    assert told in ended.output
    assert "before" not in ended.output


def test_a_disk_that_is_full():
    """What goes wrong at the end is told too, without a traceback."""
    ended = run("/dev/full")
    assert ended.exit_code == 1
    assert ended.output.endswith("Error: /dev/full: No space left on device\n")
