import csv
import itertools
import json
import os
import pty
import subprocess
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
import trustme
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceServicer, add_UserServiceServicer_to_server

from grpc_common.testing.certificates import CertificateDirectory
from grpc_common.testing.tokens import AUDIENCE, ISSUER, TokenIssuer
from tests.programs import CLIENT, PATIENCE, client, running_server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Run one server for all the commands of this file."""
    with running_server(tmp_path_factory.mktemp("client") / "users.db") as server:
        yield server


@contextmanager
def other_service(servicer: UserServiceServicer):
    """Serve user.UserService by another program than ours; yield its target."""
    server = grpc.server(ThreadPoolExecutor(2))
    add_UserServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def run(target: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the client command against a target."""
    command = [CLIENT, "--target", target, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)


def test_create_get_and_list(server):
    """create, get and list print the user: id, name and email."""
    created = client(server, "create", "--name", "Ada Lovelace", "--email", "ada@example.com")
    assert (created.returncode, created.stderr) == (0, "")
    user_id, name, email = created.stdout.rstrip("\n").split("\t")
    assert (name, email) == ("Ada Lovelace", "ada@example.com")
    assert client(server, "get", user_id).stdout == created.stdout
    assert created.stdout in client(server, "list", "--page-size", "50").stdout


def test_create_again_with_one_key(server):
    """With one idempotency key one user is created, however often; a key is of one request."""
    arguments = ["create", "--name", "Once", "--email", "once@example.com", "--idempotency-key", "my key"]
    first, second = client(server, *arguments), client(server, *arguments)
    assert first.returncode == 0
    assert second.stdout == first.stdout
    arguments[2] = "Twice"
    assert client(server, *arguments).stderr.startswith("Error: INVALID_ARGUMENT: idempotency-key: ")


class _Restarting(UserServiceServicer):
    """Is not there for the first two calls of CreateUser."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def CreateUser(self, request, context):  # noqa: N802
        self.keys += [value for key, value in context.invocation_metadata() if key == "idempotency-key"]
        if len(self.keys) <= 2:
            context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
        return pb.User(id="7", name=request.name, email=request.email)


def test_create_is_repeated_with_its_key():
    """A create that may or may not have happened is made again with the same key; each run has another."""
    service = _Restarting()
    with other_service(service) as target:
        for _ in range(2):
            created = run(target, "create", "--name", "Ada", "--email", "ada@example.com")
            assert (created.returncode, created.stdout) == (0, "7\tAda\tada@example.com\n")
    first, *others = service.keys
    assert others[:2] == [first, first]
    assert len(others) == 3
    assert others[2] != first


def test_list_goes_through_all_pages(server):
    """However small the pages, every user is listed once, and --limit is exact."""
    for n in range(5):
        assert client(server, "create", "--name", f"User {n}", "--email", f"{n}@example.com").returncode == 0
    lines = client(server, "list", "--page-size", "2").stdout.splitlines()
    assert lines == client(server, "list").stdout.splitlines()
    assert {f"{n}@example.com" for n in range(5)} <= {line.split("\t")[2] for line in lines}
    assert client(server, "list", "--limit", "3", "--page-size", "2").stdout.splitlines() == lines[:3]


def test_formats(server):
    """One user in every format; the default is a table on a terminal, and TSV for programs."""
    name = '李小龍, "Bruce"'
    created = client(server, "create", "--name", name, "--email", "li@example.com", "--format", "json")
    user = json.loads(created.stdout)
    assert user.keys() == {"id", "name", "email"}
    assert user["name"] == name

    def get(*options: str) -> str:
        return client(server, "get", user["id"], *options).stdout

    assert get() == get("--format", "tsv") == f"{user['id']}\t{name}\tli@example.com\n"
    assert list(csv.DictReader(get("--format", "csv").splitlines())) == [user]
    assert get("--format", "json") == created.stdout
    head, row = get("--format", "table").splitlines()
    assert head.split() == ["ID", "NAME", "EMAIL"]
    # On a terminal each of the three Chinese characters is two wide.
    assert head.index("EMAIL") == row.index("li@example.com") + 3
    assert on_a_terminal("--target", server.target, "get", user["id"]).split("\r\n")[0] == head


def on_a_terminal(*arguments: str) -> str:
    """Return what the client writes to a terminal."""
    ours, theirs = pty.openpty()
    subprocess.run([CLIENT, *arguments], stdout=theirs, check=True, timeout=PATIENCE)
    shown = os.read(ours, 65536).decode()
    os.close(theirs)
    os.close(ours)
    return shown


def test_list_is_what_import_reads(server, tmp_path):
    """Users leave one service as CSV and enter another."""
    listed = client(server, "list", "--format", "csv").stdout
    file = tmp_path / "users.csv"
    file.write_text(listed)
    with running_server(tmp_path / "users.db") as other:
        assert client(other, "import", str(file), "--concurrency", "1").returncode == 0
        copied = client(other, "list", "--format", "csv").stdout
    assert [line.split(",")[1:] for line in copied.splitlines()] == [
        line.split(",")[1:] for line in listed.splitlines()
    ]


@pytest.mark.parametrize(("chosen", "output"), [("tsv", ""), ("json", ""), ("csv", "id,name,email\n")])
def test_no_users(tmp_path, chosen, output):
    """An empty list is no error."""
    with running_server(tmp_path / "users.db") as server:
        result = client(server, "list", "--format", chosen)
        assert (result.returncode, result.stdout, result.stderr) == (0, output, "")


class _Hostile(UserServiceServicer):
    def GetUser(self, _request, context):  # noqa: N802
        context.abort(grpc.StatusCode.NOT_FOUND, "no\x1b[2J\nError: user")

    def ListUsers(self, _request, _context):  # noqa: N802
        yield pb.User(id="\x1b]0;owned\a", name="a\tb\nc\x9b31m\u202e", email="\u2028")


@pytest.mark.parametrize("chosen", ["table", "json", "csv", "tsv"])
def test_nothing_writes_to_the_terminal(chosen):
    """What another service says is shown, and does nothing, in whatever format."""
    with other_service(_Hostile()) as target:
        listed = run(target, "list", "--format", chosen)
        assert listed.returncode == 0
        assert all(character.isprintable() or character in "\n\t" for character in listed.stdout)
        assert len(listed.stdout.splitlines()) == (2 if chosen in {"table", "csv"} else 1)
        if chosen == "json":
            assert json.loads(listed.stdout)["name"] == "a\tb\nc\x9b31m\u202e"
        assert run(target, "get", "7").stderr == r"Error: NOT_FOUND: no\x1b[2J\nError: user" + "\n"


class _Endless(UserServiceServicer):
    def ListUsers(self, request, context):  # noqa: N802
        context.set_trailing_metadata((("next-page-token", "more"),))
        for _ in range(request.page_size):
            yield pb.User(id=str(uuid.uuid4()), name="x" * 200, email="x@example.com")


def test_list_keeps_memory_flat():
    """Twenty thousand users of 300 bytes, or a million, take as much memory as two thousand."""
    with other_service(_Endless()) as target:
        peaks = {count: peak_memory(target, "list", "--limit", str(count)) for count in (2_000, 20_000)}
    print({count: f"{peak / 2**20:.1f} MiB" for count, peak in peaks.items()})
    assert peaks[20_000] - peaks[2_000] < 3 * 2**20


def peak_memory(target: str, *arguments: str) -> int:
    """Return the most bytes that a run of the client has in memory."""
    process = subprocess.Popen([CLIENT, "--target", target, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024


class _Interrupted(_Endless):
    """Fails in the middle of its second page, the first time that it is asked for."""

    def __init__(self) -> None:
        self._calls = itertools.count()

    def ListUsers(self, request, context):  # noqa: N802
        call = next(self._calls)
        if call == 0:
            context.set_trailing_metadata((("next-page-token", "more"),))
        for n in range(2):
            yield pb.User(id=request.page_token, name=str(n), email=str(call))
            if call == 1:
                context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")


def test_list_outlives_a_restart():
    """A page that breaks off is asked for again, and no user is shown twice."""
    with other_service(_Interrupted()) as target:
        result = run(target, "list", "--page-size", "2")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "\t0\t0\n\t1\t0\nmore\t0\t2\nmore\t1\t2\n"


def test_output_is_closed():
    """A reader that has enough, like head, ends the list without a word."""
    with other_service(_Endless()) as target:
        command = [CLIENT, "--target", target, "list"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 1


def test_output_is_full():
    """A full disk is one line."""
    with other_service(_Endless()) as target, open("/dev/full", "wb") as full:  # noqa: PTH123
        command = [CLIENT, "--target", target, "list"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False, timeout=PATIENCE)
    assert (result.returncode, result.stderr) == (1, b"Error: the output: No space left on device\n")


def test_mutual_tls(tmp_path):
    """--tls-directory is all that a server with mutual TLS wants."""
    ca = trustme.CA()
    ours = CertificateDirectory(tmp_path / "server", ca, "users.internal")
    theirs = CertificateDirectory(tmp_path / "client", ca, "somebody")
    stranger = CertificateDirectory(tmp_path / "stranger", trustme.CA(), "somebody")
    with running_server(
        tmp_path / "users.db", TLS_DIRECTORY=str(ours.path), TLS_REQUIRE_CLIENT_CERTIFICATE="true"
    ) as server:

        def listed(directory: CertificateDirectory, *options: str) -> subprocess.CompletedProcess[str]:
            return client(server, "--tls-directory", str(directory.path), *options, "list")

        assert listed(theirs, "--tls-server-name", "users.internal").returncode == 0
        for refused in (
            listed(theirs),
            listed(stranger, "--tls-server-name", "users.internal"),
            client(server, "list"),
        ):
            assert refused.returncode == 1
            assert refused.stderr.startswith("Error: UNAVAILABLE: ")
            assert len(refused.stderr.splitlines()) == 1


def test_bearer_token(tmp_path):
    """--token-file is all that a server wants that asks for a token, and is not sent without TLS."""
    issuer, keys, token = TokenIssuer(), tmp_path / "jwks.json", tmp_path / "token"
    keys.write_bytes(issuer.jwks())
    token.write_text(issuer.token())
    directory = str(CertificateDirectory(tmp_path / "server", trustme.CA(), "localhost").path)
    file = tmp_path / "config.yaml"
    jwt = {"jwks": str(keys), "issuer": ISSUER, "audience": AUDIENCE}
    file.write_text(json.dumps({"server": {"jwt": jwt, "allowed_callers": {"*": ["subject:ada"]}}}))
    with running_server(tmp_path / "users.db", TLS_DIRECTORY=directory, CONFIG_FILE=str(file)) as server:
        over_tls = ["--tls-directory", directory, "--tls-server-name", "localhost"]
        without = client(server, *over_tls, "list")
        assert (without.returncode, without.stderr.startswith("Error: UNAUTHENTICATED: ")) == (1, True)
        assert client(server, *over_tls, "--token-file", str(token), "list").returncode == 0
        plaintext = client(server, "--token-file", str(token), "list")
        assert (plaintext.returncode, "--token-file needs TLS" in plaintext.stderr) == (2, True)


def test_tls_directory_that_cannot_be_used(server, tmp_path):
    """A folder without certificates is a mistake in the command, which says what is missing."""
    result = client(server, "--tls-directory", str(tmp_path), "list")
    assert result.returncode == 2
    assert "ca.crt" in result.stderr
    assert client(server, "--tls-directory", str(tmp_path / "no"), "list").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["get", "7"], "INVALID_ARGUMENT: id: "),
        (["get", "019b2f60-7c00-7000-8000-000000000000"], "NOT_FOUND: "),
        (["create", "--name", "x" * 10_000, "--email", "x@example.com"], "INVALID_ARGUMENT: name: "),
        (["create", "--name", "Ada", "--email", "example.com"], "INVALID_ARGUMENT: email: "),
        (["create", "--name", "A\x1b[31mda", "--email", "x@example.com"], "INVALID_ARGUMENT: name: "),
        (["--timeout", "1ms", "list"], "DEADLINE_EXCEEDED: "),
    ],
)
def test_error_of_the_service(server, arguments, message):
    """A status is one line on stderr that is safe to print, and exit code 1."""
    result = client(server, *arguments)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"Error: {message}")
    assert result.stderr.removesuffix("\n").isprintable()


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["list", "--page-size", "0"],
        ["list", "--page-size", "many"],
        ["list", "--limit", "0"],
        ["list", "--format", "xml"],
        ["--timeout", "5", "list"],
        ["create", "--name", "Ada"],
        ["create", "--name", b"\xff", "--email", "x@example.com"],
        ["create", "--name", "Ada", "--email", "x@example.com", "--idempotency-key", ""],
        ["create", "--name", "Ada", "--email", "x@example.com", "--idempotency-key", "é"],
        ["get"],
        ["import", "no such file"],
        ["import", "/"],
        ["import", "-", "--concurrency", "0"],
        ["import", "-", "--retry-for", "a while"],
    ],
)
def test_mistake_in_the_command(server, arguments):
    """A wrong command line is explained without asking the service, with exit code 2."""
    result = client(server, *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("Usage: client")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", [[], ["create"], ["get"], ["list"], ["import"]])
def test_help(command):
    """Every command explains itself, and the first one the exit codes."""
    result = run("unused", *command, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("Usage: client")
    if not command:
        assert "130  stopped by Ctrl-C" in result.stdout


def test_no_server(server):
    """A server that is not there is one line and exit code 1, at once."""
    port = server.port("metrics_port")  # serves HTTP/1, so no gRPC answers
    result = client(server, "--target", f"127.0.0.1:{port}", "get", "7")
    assert result.returncode == 1
    assert result.stderr.startswith("Error: UNAVAILABLE: ")
    assert len(result.stderr.splitlines()) == 1


def test_target_of_no_known_form(server):
    """A target that can't be dialled is a mistake in the command, which shows the right forms."""
    result = client(server, "--target", "http://localhost:1", "get", "7")
    assert result.returncode == 2
    assert "kubernetes:///SERVICE.NAMESPACE:PORT" in result.stderr
