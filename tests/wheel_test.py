import ast
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from importlib.metadata import distributions
from pathlib import Path

import grpc
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

(WHEEL,) = Path("libs/grpc_common/wheel").absolute().glob("*.whl")
CONSUMER = Path("examples/consumer").absolute()
README = Path("libs/grpc_common/README.md")
OF_EXTRAS = {"aiohttp", "jwt", "kubernetes_asyncio", "opentelemetry", "pytest", "trustme"}
OUR_PATH = os.pathsep.join(path for path in sys.path if "site-packages" in path)
"""For programs of the test's own packages; what is in the virtual environment must not see them."""

CANNOT_START = """

async def test_server_that_cannot_start(serve):
    await serve(Echo(), lambda _echo, _server: None)
"""


@pytest.fixture(scope="module")
def metadata() -> Message:
    """Return what the wheel says of itself."""
    with zipfile.ZipFile(WHEEL) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(wheel.read(name).decode())


OWN_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
# Bazel gives tests a HOME of their own.
PYENV = Path(pwd.getpwuid(os.getuid()).pw_dir, ".pyenv")


def interpreter(version: str) -> Path | str:
    """Return a Python of this version: this test's own, pyenv's or the one on PATH."""
    if version == OWN_VERSION:
        return sys.executable
    found = [*PYENV.glob(f"versions/{version}.*/bin/python{version}"), shutil.which(f"python{version}")]
    return found[0] or pytest.skip(f"needs python{version} on PATH, or in ~/.pyenv (pyenv install {version})")


@pytest.fixture(scope="module", params=["3.13", "3.14"])
def python(request, tmp_path_factory) -> Path:
    """Return the interpreter of a virtual environment with the wheel, and what it asks for, alone."""
    folder = tmp_path_factory.mktemp("environment")
    make = [sys.executable, "-m", "virtualenv", "--quiet", "--no-download", "--python"]
    run(*make, interpreter(request.param), folder, PYTHONPATH=OUR_PATH)
    python = folder / "bin/python"
    install = [python, "-m", "pip", "install", "--quiet", "--only-binary=:all:", "--retries=1", WHEEL]
    if (installed := run(*install, check=False)).returncode:
        pytest.fail(
            "this test installs the wheel's dependencies from a package index, as pip is configured"
            f" on this machine, and that failed:\n{installed.stderr}",
            pytrace=False,
        )
    return python


def run(*command: str | Path, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command outside of this test's Python path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    result = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if check and result.returncode:
        pytest.fail(f"{' '.join(map(str, command))}:\n{result.stdout}{result.stderr}", pytrace=False)
    return result


def test_contents():
    """The wheel is typed and licensed, and has the helpers for tests but no test."""
    with zipfile.ZipFile(WHEEL) as wheel:
        names = wheel.namelist()
    assert {"grpc_common/py.typed", "grpc_common/testing/server.py"} <= set(names)
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
    assert [name for name in names if name.endswith("_test.py")] == []


def test_version_is_the_modules(metadata):
    """Bazel's consumers and pip's see the same version."""
    assert f'\n    version = "{metadata["Version"]}",\n' in Path("MODULE.bazel").read_text()


def test_every_import_is_declared(metadata):
    """The wheel asks for the distributions that its sources import, and for no others."""
    declared = {canonicalize_name(Requirement(line).name) for line in metadata.get_all("Requires-Dist")}
    assert declared == imported_distributions()


def test_ranges_hold_what_is_locked(metadata):
    """The versions that the tests here run with are among those that the wheel allows."""
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)", Path("requirements_lock.txt").read_text(), re.MULTILINE))
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    assert [str(r) for r in requirements if not r.specifier.contains(locked[r.name])] == []


def imported_distributions() -> set[str]:
    """Return the distributions that the wheel's modules import, whether at once or when needed."""
    owners = {
        file.with_suffix("").as_posix().removesuffix("/__init__").replace("/", "."): canonicalize_name(d.name)
        for d in distributions()
        for file in d.files or []
        if file.suffix == ".py"
    }
    with zipfile.ZipFile(WHEEL) as wheel:
        sources = [wheel.read(name) for name in wheel.namelist() if name.endswith(".py")]
    names = {name for source in sources for node in ast.walk(ast.parse(source)) for name in imported(node)}
    foreign = [name for name in names if name.split(".")[0] not in sys.stdlib_module_names | {"grpc_common"}]
    # The longest part of the name that is a file, since what is imported may be a name in it.
    return {next((owners[p] for p in prefixes(name) if p in owners), name) for name in foreign}


def prefixes(name: str) -> list[str]:
    """Return "a.b.c", "a.b" and "a" for "a.b.c"."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]


def imported(node: ast.AST) -> list[str]:
    """Return what a statement imports, by full names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Constant) and str(node.value).startswith("opentelemetry.exporter."):
        return [node.value]  # it is imported by its name, as a variable says
    return []


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> Path:
    """Return a folder with the Python code of the consumer's echo.proto."""
    folder = tmp_path_factory.mktemp("generated")
    out = [f"--python_out={folder}", f"--grpc_python_out={folder}"]
    protoc = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"--proto_path={CONSUMER}/proto",
        *out,
        "echo/echo.proto",
    ]
    run(*protoc, PYTHONPATH=OUR_PATH)
    return folder


def test_every_module_can_be_imported(python):
    """Each module but those of an extra is imported, and its annotations are of names that are there."""
    with zipfile.ZipFile(WHEEL) as wheel:
        files = [name for name in wheel.namelist() if name.endswith(".py")]
    names = {".".join(Path(name).with_suffix("").parts).removesuffix(".__init__") for name in files}
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try: importlib.import_module(name)\n"
        "    except ModuleNotFoundError as error: print(error.name.partition('.')[0])\n"
    )
    result = run(python, "-c", program, *sorted(names), check=False)
    assert result.returncode == 0, result.stderr
    assert set(result.stdout.split()) <= OF_EXTRAS


def test_serves_the_consumers_echo(python, generated):
    """Installed by pip, the library serves what examples/consumer serves, and TERM ends it with 0."""
    environment = {"GRPC_PORT": "0", "METRICS_PORT": "0", "DRAIN_DELAY": "0s", "PYTHONPATH": str(generated)}
    command = [python, CONSUMER / "services/echo/server.py"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as server:
        first_line = server.stderr.readline()
        port = re.search(r"grpc_port\D+(\d+)", first_line)
        assert port, first_line + server.communicate()[1]
        with grpc.insecure_channel(f"127.0.0.1:{port[1]}") as channel:
            echo = channel.unary_unary("/echo.Echo/Echo")
            assert echo(b"\n\5hello") == b"\n\5hello"  # field 1, five bytes
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=30)
    assert server.returncode == 0


def test_commands_start(python):
    """The commands that the wheel brings are there and explain themselves."""
    helped = {path.name: run(path, "--help", check=False) for path in python.parent.glob("grpc-common-*")}
    assert helped
    assert {name: result.stderr for name, result in helped.items() if "Usage: " not in result.stdout} == {}


def test_kit_for_tests(python, generated, tmp_path):
    """With the extra `testing` alone, what the README says of the fixture `serve` works and is told well."""
    section = README.read_text().partition("## Testing a service")[2]
    (tmp_path / "echo_test.py").write_text(
        section.partition("```python\n")[2].partition("```")[0] + CANNOT_START
    )
    run(python, "-m", "pip", "install", "--quiet", "--only-binary=:all:", "--retries=1", f"{WHEEL}[testing]")
    command = [python, "-m", "pytest", "-pno:cacheprovider", "-oasyncio_mode=auto", tmp_path]
    result = run(*command, check=False, PYTHONPATH=os.pathsep.join([str(generated), str(CONSUMER)]))
    assert "1 failed, 2 passed" in result.stdout, result.stdout + result.stderr
    assert "E       grpc_common.core.errors.StartError: <lambda> registers no service" in result.stdout
