import csv
import io
import os
import pty
import subprocess
import threading
from pathlib import Path

import pytest

from tests.programs import CLIENT, PATIENCE, Server, client, running_server

SEED_DEMO = Path("services/user/seed_demo").absolute()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Run one server for what needs no database of its own."""
    with running_server(tmp_path_factory.mktemp("import") / "users.db") as server:
        yield server


def emails(server: Server) -> list[str]:
    """Return the emails of all users."""
    return [line.split("\t")[2] for line in client(server, "list").stdout.splitlines()]


def run_import(server: Server, content: bytes, *options: str) -> subprocess.CompletedProcess[bytes]:
    """Import `content` from stdin."""
    command = [CLIENT, "--target", server.target, "import", "-", *options]
    return subprocess.run(command, input=content, capture_output=True, check=False, timeout=PATIENCE)


def test_import(server, tmp_path):
    """Every line becomes a user, and the figures are told."""
    file = tmp_path / "users.csv"
    file.write_text("name,email\nZoë,zoe@example.com\n李小龍,li@example.com\n")
    result = client(server, "import", str(file))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("2 users imported, 0 lines rejected, in ")
    assert {"zoe@example.com", "li@example.com"} <= set(emails(server))


@pytest.mark.parametrize(
    ("content", "user"),
    [
        (b"\xef\xbb\xbfname,email\r\nBom,bom@example.com\r\n", ("Bom", "bom@example.com")),
        (b"id;Email ;NAME\n7;semicolon@example.com;Semi\n", ("Semi", "semicolon@example.com")),
        (b"name\temail\nTab\ttab@example.com", ("Tab", "tab@example.com")),
        (b'"name","email"\n"Comma, ""Jr""",comma@example.com\n', ('Comma, "Jr"', "comma@example.com")),
        (b"name,email\n\n\r\n  \nEmpty,empty@example.com\n\n", ("Empty", "empty@example.com")),
    ],
)
def test_forms_of_csv(server, content, user):
    """What spreadsheets write is read: BOM, CR LF, semicolons, tabs, quotes, columns in any order."""
    result = run_import(server, content)
    assert (result.returncode, result.stderr) == (0, b"")
    assert "\t".join(user) + "\n" in client(server, "list").stdout


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it has nothing"),
        (b"a,b\n", "it has 'a', 'b'"),
        (b"name,name,email\n", "once each"),
        (b"x" * 100_000, "longer than 65536 bytes"),
        (b"name,\x1b[31m\n", r"'\x1b[31m'"),
        ("name,email\n".encode("utf-16"), "not UTF-8: it has 0xFF as byte 1"),
        (b'name,"email\n', "quotation mark is not closed"),
        (b"name,email\rA,a@example.com\r", "carriage return"),
    ],
)
def test_first_line_must_name_the_columns(server, content, reason):
    """Without a header nothing can be imported: a mistake of the command, which says what is right."""
    result = run_import(server, content)
    assert result.returncode == 2
    lines = result.stderr.decode().splitlines()
    assert lines[-1].startswith("Error: stdin: the first line ")
    assert reason in lines[-1]
    assert all(line.isprintable() for line in lines)


def test_bad_line_of_a_file_with_tabs(server):
    """The character that was expected is shown, and not written as it is."""
    result = run_import(server, b'name\temail\n"a"b\to@example.com\n')
    assert result.returncode == 3
    assert result.stderr.splitlines()[0] == rb"""stdin:2: is not CSV: '\t' expected after '"'"""


BAD_LINES = {
    b"only a name": "has 1 fields where the first line has 2",
    b"a,b@example.com,c": "has 3 fields where the first line has 2",
    b'"open,o@example.com': "is not CSV: a quotation mark is not closed on the line",
    b'"a"b,o@example.com': "is not CSV: ',' expected after '\"'",
    b"\xff,o@example.com": "is not UTF-8: it has 0xFF as byte 1",
    b"a\rb,o@example.com": "has a carriage return in it; lines must end in LF or CR LF",
    b"a" * 10_000_000 + b",o@example.com": "is longer than 65536 bytes",
    b"nul\0,o@example.com": "INVALID_ARGUMENT: name: must not hold the control character U+0000",
    b"\x1b[31m,o@example.com": "INVALID_ARGUMENT: name: must not hold the control character U+001B",
    b",": "INVALID_ARGUMENT: name: must not be empty; email: ",
    b"A,example.com": "INVALID_ARGUMENT: email: ",
    b"x" * 201 + b",o@example.com": "INVALID_ARGUMENT: name: has 201 characters",
    b"Twin,twin@example.com": "ALREADY_EXISTS: another user has the email twin@example.com",
    b"Other,TWIN@example.com": "ALREADY_EXISTS: another user has the email TWIN@example.com",
}


def file_with_bad_lines() -> tuple[bytes, dict[int, str]]:
    """Return a file in which every bad line is between good ones, and the reasons by line number."""
    lines, reasons = [b"name,email", b"Twin,twin@example.com"], {}
    for n, (line, reason) in enumerate(BAD_LINES.items()):
        lines += [f"Good,good{n}@example.com".encode(), line]
        reasons[len(lines)] = reason
    return b"\n".join([*lines, b"Good,last@example.com"]), reasons


def test_bad_lines_are_told_and_the_others_taken(tmp_path):
    """Each rejected line is a line on stderr with its number and the reason; exit code 3."""
    content, reasons = file_with_bad_lines()
    with running_server(tmp_path / "users.db") as server:
        result = run_import(server, content, "--concurrency", "1")
        assert len(emails(server)) == len(BAD_LINES) + 2
    assert result.returncode == 3
    told = {}
    for line in result.stderr.decode().splitlines():
        assert line.isprintable()
        place, number, reason = line.split(":", 2)
        assert place == "stdin"
        told[int(number)] = reason.removeprefix(" ")
    assert told.keys() == reasons.keys()
    assert {number: told[number][: len(reason)] for number, reason in reasons.items()} == reasons
    taken = len(BAD_LINES) + 2
    assert f"{taken} users imported, {len(BAD_LINES)} lines rejected (2 of them" in result.stdout.decode()


def test_rejects_are_a_file_to_put_right(server, tmp_path):
    """--rejects has the lines with number and reason, in a form that can be imported."""
    rejects = tmp_path / "rejects.csv"
    content = b"name,email\nA,rejects.example.com\nB,b.rejects@example.com\n\xff"
    result = run_import(server, content, "--rejects", str(rejects), "--concurrency", "1")
    assert (result.returncode, result.stderr) == (3, b"")
    rows = list(csv.DictReader(io.StringIO(rejects.read_text())))
    found = [(row["line"], row["name"], row["email"]) for row in rows]
    assert found == [("2", "A", "rejects.example.com"), ("4", "", "")]
    assert rows[0]["reason"].startswith("INVALID_ARGUMENT: email: ")
    assert rows[1]["reason"] == "is not UTF-8: it has 0xFF as byte 1"
    corrected = rejects.read_bytes().replace(b"rejects.ex", b"rejects@ex").splitlines()
    kept = b"\n".join(line for line in corrected if not line.startswith(b",,"))
    assert run_import(server, kept).returncode == 0


def test_import_would_not_overwrite_its_file(server, tmp_path):
    """--rejects can't be the file that is imported."""
    file = tmp_path / "users.csv"
    file.write_text("name,email\n")
    assert client(server, "import", str(file), "--rejects", str(file)).returncode == 2
    assert file.read_text() == "name,email\n"


def test_import_again_creates_nothing_twice(tmp_path):
    """The second run of a file finds every user in, also after a mistake in one line was put right."""
    file = tmp_path / "users.csv"
    with running_server(tmp_path / "users.db") as server:
        file.write_text("name,email\nA,a@example.com\nB,example.com\nC,c@example.com\n")
        assert client(server, "import", str(file)).returncode == 3
        file.write_text("name,email\nA,a@example.com\nB,b@example.com\nC,c@example.com\n")
        result = client(server, "import", str(file))
        assert (result.returncode, result.stderr) == (0, "")
        assert sorted(emails(server)) == ["a@example.com", "b@example.com", "c@example.com"]


def test_progress_on_a_terminal(server):
    """On a terminal there is a bar, and rejected lines are whole above it."""
    ours, theirs = pty.openpty()
    command = [CLIENT, "--target", server.target, "import", "-"]
    shown = []

    def read() -> None:
        try:
            while chunk := os.read(ours, 4096):
                shown.append(chunk)
        except OSError:
            pass  # how Linux says that nobody writes to a terminal any more

    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        reader = threading.Thread(target=read)
        reader.start()
        process.communicate(b"name,email\nTty,tty@example.com\nno\n", timeout=PATIENCE)
        reader.join(PATIENCE)
    assert process.returncode == 3
    text = b"".join(shown).decode()
    assert "0 users imported" in text
    assert "stdin:3: has 1 fields where the first line has 2" in text


def test_seed_demo(tmp_path):
    """Demo users have different emails and are the same for the same seed; once more adds none."""
    command = [SEED_DEMO, "--users", "300"]
    with running_server(tmp_path / "users.db") as server:
        command += ["--target", server.target]
        for seed in ("1", "1", "2"):
            result = subprocess.run(
                [*command, "--seed", seed], capture_output=True, text=True, check=True, timeout=PATIENCE
            )
            assert result.stdout.startswith("300 users imported, 0 lines rejected, in ")
            assert result.stderr == ""
        found = client(server, "list").stdout.splitlines()
    assert len(found) == 600
    assert len({line.split("\t")[1] for line in found}) > 100


def test_help_of_seed_demo():
    """It explains itself without a server."""
    result = subprocess.run(
        [SEED_DEMO, "--help"], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("Usage: seed_demo")
    assert "--users" in result.stdout
