import pytest

from tests.programs import client, running_server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Run one server for all the commands of this file."""
    with running_server(tmp_path_factory.mktemp("client") / "users.db") as server:
        yield server


def test_create_get_and_list(server):
    """The three commands of the README print the user: id, name and email."""
    created = client(server, "create", "--name", "Ada Lovelace", "--email", "ada@example.com")
    assert (created.returncode, created.stderr) == (0, "")
    user_id, name, email = created.stdout.rstrip("\n").split("\t")
    assert (name, email) == ("Ada Lovelace", "ada@example.com")
    assert client(server, "get", user_id).stdout == created.stdout
    assert created.stdout in client(server, "list", "--page-size", "50").stdout


def test_list_goes_through_all_pages(server):
    """However small the pages, every user is listed once."""
    for n in range(5):
        assert client(server, "create", "--name", f"User {n}", "--email", f"{n}@example.com").returncode == 0
    lines = client(server, "list", "--page-size", "2").stdout.splitlines()
    assert lines == client(server, "list").stdout.splitlines()
    assert {f"{n}@example.com" for n in range(5)} <= {line.split("\t")[2] for line in lines}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["get", "7"], "INVALID_ARGUMENT: id: "),
        (["get", "019b2f60-7c00-7000-8000-000000000000"], "NOT_FOUND: "),
        (["create", "--name", "x" * 10_000, "--email", "x@example.com"], "INVALID_ARGUMENT: name: "),
        (["create", "--name", "Ada", "--email", "example.com"], "INVALID_ARGUMENT: email: "),
        (["create", "--name", "A\x1b[31mda", "--email", "x@example.com"], "INVALID_ARGUMENT: name: "),
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
        ["create", "--name", "Ada"],
        ["create", "--name", b"\xff", "--email", "x@example.com"],
        ["get"],
    ],
)
def test_mistake_in_the_command(server, arguments):
    """A wrong command line is explained without asking the service, with exit code 2."""
    result = client(server, *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("Usage: client")
    assert "Traceback" not in result.stderr


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
