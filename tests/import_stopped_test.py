import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.programs import CLIENT, PATIENCE, Server, client, running_server
from tools.ports import held_port

LINES = 2000
"""Users of a file that takes long enough to be stopped in the midst."""

MARK = 500
"""The line of it that is not a user, whose rejection tells that this is the midst."""

HELD = 100
"""Lines at its end that come later, so that no import is done before it was stopped."""


def emails(server: Server) -> list[str]:
    """Return the emails of all users, in order."""
    return sorted(line.split("\t")[2] for line in client(server, "list").stdout.splitlines())


def long_file(folder: Path) -> Path:
    """Write a file of LINES users, and MARK."""
    rows = [f"User {n},u{n}@example.com" for n in range(2, LINES + 2)]
    rows[MARK - 2] = "mark,"
    file = folder / "users.csv"
    file.write_text("name,email\n" + "\n".join(rows) + "\n")
    return file


def expected_emails() -> list[str]:
    """Return what a server has after the import of a long file."""
    return sorted(f"u{n}@example.com" for n in range(2, LINES + 2) if n != MARK)


def start_import(server: Server, file: Path, *options: str) -> subprocess.Popen[str]:
    """Start the import of a long file, but for its end; return once it is in the midst."""
    command = [CLIENT, "--target", server.target, "import", "-", *options]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stderr
    process.stdin.write("".join(lines_of(file)[:-HELD]))
    process.stdin.flush()
    first = next(line for line in process.stderr if not is_progress(line))
    assert first.startswith(f"stdin:{MARK}: INVALID_ARGUMENT: email: ")
    return process


def lines_of(file: Path) -> list[str]:
    """Return the lines of a file, each with its end."""
    return file.read_text().splitlines(keepends=True)


def is_progress(line: str) -> bool:
    """Tell the line that says every 10 seconds how far an import is, which a slow one writes."""
    return re.match(r"[\d,]+ users imported, ", line) is not None


def wait_for(process: subprocess.Popen[str], file: Path) -> tuple[str, list[str]]:
    """Let an import read the end of its file, and wait for its own.

    Returns its stdout, and what it has told on stderr but for progress.
    """
    output, errors = process.communicate("".join(lines_of(file)[-HELD:]), timeout=PATIENCE)
    return output, [line for line in errors.splitlines() if not is_progress(line)]


def test_interrupted_and_resumed(tmp_path):
    """Ctrl-C ends an import with how to resume it; resumed, every line is one user."""
    file = long_file(tmp_path)
    with running_server(tmp_path / "users.db") as server:
        process = start_import(server, file)
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)
        _, (stopped,) = wait_for(process, file)
        assert process.returncode == 130
        assert stopped.startswith("Stopped: ")
        assert stopped.endswith(": no user is created twice.")
        line = int(stopped.split("--from-line ")[1].split(":")[0])
        assert MARK - 100 < line < LINES
        assert len(emails(server)) < LINES - 1
        resumed = client(server, "import", str(file), "--from-line", str(line))
        assert resumed.returncode in (0, 3)  # 3 if the mark is among what is done again
        assert emails(server) == expected_emails()
        assert client(server, "import", str(file)).returncode == 3
        assert emails(server) == expected_emails()


@pytest.mark.parametrize("stop", ["kill", "drain"])
def test_server_restarted_in_the_midst(tmp_path, stop):
    """An import outlives the death and the restart of its server: every line is one user."""
    file = long_file(tmp_path)
    with held_port() as port, running_server(tmp_path / "users.db", GRPC_PORT=str(port)) as server:
        process = start_import(server, file)
        if stop == "kill":
            server.kill()
        else:
            server.signal(signal.SIGTERM)
            server.wait()
        with running_server(tmp_path / "users.db", GRPC_PORT=str(port)) as restarted:
            output, errors = wait_for(process, file)
            assert (process.returncode, errors) == (3, [])
            assert output.startswith(f"{LINES - 1:,} users imported, 1 lines rejected, in ")
            assert emails(restarted) == expected_emails()


def test_server_that_stays_away(tmp_path):
    """After --retry-for an import ends with exit code 1, the error, and how to resume it."""
    file = long_file(tmp_path)
    with running_server(tmp_path / "users.db") as server:
        process = start_import(server, file, "--retry-for", "1s")
        server.kill()
        _, (stopped, error) = wait_for(process, file)
    assert process.returncode == 1
    assert "--from-line" in stopped
    assert error.startswith("Error: UNAVAILABLE: ")


def test_interrupted_while_stdin_waits(tmp_path):
    """Ctrl-C ends an import whose pipe says nothing."""
    with running_server(tmp_path / "users.db") as server:
        process = subprocess.Popen(
            [CLIENT, "--target", server.target, "import", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        assert process.stdin
        assert process.stderr
        process.stdin.write("name,email\nonly a name\n")
        assert process.stderr.readline().startswith("stdin:2: ")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "--from-line 3" in errors
