import click
import pytest
from click.testing import CliRunner

from tools.pages.output_file import OutputFile, write


@click.command()
@click.option("--html", type=OutputFile())
def command(html):
    """Write a page, after a long time."""
    click.echo("began")
    write(html, "a page ✓")


def test_the_file_is_written_at_the_end_alone(tmp_path):
    """Until then there is none, and one that was there is as it was."""
    there = []

    @click.command()
    @click.option("--html", type=OutputFile())
    def look(html):
        there.append(html.read_text() if html.exists() else None)

    (tmp_path / "old").write_text("old")
    for name in ("old", "new"):
        assert CliRunner().invoke(look, ["--html", str(tmp_path / name)]).exit_code == 0
    assert there == ["old", None]
    done = CliRunner().invoke(command, ["--html", str(tmp_path / "new")])
    assert (done.exit_code, done.output) == (0, f"began\nwritten: {tmp_path}/new\n")
    assert (tmp_path / "new").read_text("utf-8") == "a page ✓"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("missing/page.html", "missing/page.html can't be written: No such file or directory"),
        ("file/page.html", "file/page.html can't be written: Not a directory"),
        ("x" * 300, "can't be written: File name too long"),
        (".", "is a directory"),
        ("file-system/page.html", "can't be written"),
    ],
)
def test_what_cannot_be_written_is_found_out_first(tmp_path, name, why):
    """Nobody waits for twenty minutes to learn that there is no such folder."""
    (tmp_path / "file").touch()
    (tmp_path / "file-system").symlink_to("/proc")  # which takes no file, from root neither
    done = CliRunner().invoke(command, ["--html", str(tmp_path / name)])
    assert done.exit_code == 2
    assert "Invalid value for '--html'" in done.output
    assert why in done.output
    assert "began" not in done.output


def test_a_link_stays_a_link(tmp_path):
    """One that leads to no file yet is not taken away by the question whether it can be written."""
    (tmp_path / "link").symlink_to("target")
    assert CliRunner().invoke(command, ["--html", str(tmp_path / "link")]).exit_code == 0
    assert (tmp_path / "target").read_text("utf-8") == "a page ✓"
    assert (tmp_path / "link").is_symlink()


def test_a_disk_that_is_full_then_is_told():
    """What was writable may not be at the end; that is no traceback either."""
    done = CliRunner().invoke(command, ["--html", "/dev/full"])
    assert done.exit_code == 1
    assert done.output == "began\nError: /dev/full: No space left on device\n"
