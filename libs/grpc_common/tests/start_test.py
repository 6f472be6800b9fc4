"""What a server imports until it serves: what is imported needlessly costs every start time and memory."""

import os
import subprocess
import sys

import pytest
import trustme

from grpc_common.testing.certificates import CertificateDirectory
from grpc_common.testing.tokens import ISSUER, TokenIssuer

PROGRAM = '''
import sys

import grpc_common


async def serve(config: grpc_common.ServerConfig) -> int:
    """Serve health and reflection, and say what is imported."""
    async with grpc_common.Server(config).serving():
        print(*sys.modules)
    return 0


grpc_common.command(serve, grpc_common.ServerConfig)()
'''

LIBRARIES = {
    "annotated_types",
    "click",
    "google",
    "grpc",
    "grpc_common",
    "grpc_health",
    "grpc_reflection",
    "grpc_status",
    "prometheus_client",
    "pydantic",
    "pydantic_core",
    "structlog",
    "typing_inspection",
}
"""What every server needs beside what gRPC itself imports.

Whatever is added here, all servers start later for it: measure that first.
"""

SLOW_PARTS_OF_PYTHON = {"ctypes", "multiprocessing", "sqlite3", "unittest", "xml"}

PARTS = {
    "grpc_common.client",
    "grpc_common.commands.doctor",
    "grpc_common.config.yaml_file",
    "grpc_common.observe.tracing",
    "grpc_common.server.jwks",
    "grpc_common.server.jwt",
    "grpc_common.testing",
    "grpc_common.tls.files",
}
"""Our own modules for what a server may do without."""


def imported(program: str, *arguments: str, **variables: str) -> set[str]:
    """Run a program that prints the names of modules, and return them."""
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    environ |= {
        "GRPC_HOST": "127.0.0.1",
        "GRPC_PORT": "0",
        "METRICS_PORT": "0",
        "DRAIN_DELAY": "0s",
    } | variables
    command = [sys.executable, "-c", program, *arguments]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return set(ended.stdout.split())


def libraries(modules: set[str]) -> set[str]:
    """Return what is neither Python's own nor a part of something compiled by Cython."""
    names = {module.partition(".")[0] for module in modules}
    return {name for name in names - sys.stdlib_module_names if "cython" not in name and name[0] != "_"}


@pytest.mark.parametrize("engine", ["grpc-aio", "auto"])
def test_server_imports_what_every_server_needs(engine):
    """A server whose settings are the defaults has imported those libraries, and nothing else."""
    modules = imported(PROGRAM, ENGINE=engine) - imported("import sys, grpc.aio; print(*sys.modules)")
    assert libraries(modules) == LIBRARIES
    assert {module.partition(".")[0] for module in modules} & SLOW_PARTS_OF_PYTHON == set()
    assert modules & PARTS == set()
    assert ("grpc_common.server.queue.server" in modules) == (engine == "auto")
    assert "grpc._channel" not in modules  # gRPC's client for threads


def needed(tmp_path, feature: str) -> tuple[list[str], dict[str, str]]:
    """Return the arguments and the variables that turn a feature on."""
    match feature:
        case "file":
            (tmp_path / "config.yaml").write_text("logging: {level: warning}\n")
            return ["--config", str(tmp_path / "config.yaml")], {}
        case "TLS":
            return [], {"TLS_DIRECTORY": str(CertificateDirectory(tmp_path / "tls", trustme.CA()).path)}
        case "tracing":
            return [], {
                "TRACING_ENABLED": "true",
                "TRACING_SERVICE_NAME": "a",
                "OTEL_TRACES_EXPORTER": "none",
            }
        case _:
            (tmp_path / "jwks.json").write_bytes(TokenIssuer().jwks())
            variables = {"JWKS": str(tmp_path / "jwks.json"), "ISSUER": ISSUER, "AUDIENCE": "a"}
            return [], {f"JWT_{name}": value for name, value in variables.items()}


@pytest.mark.parametrize(
    ("feature", "more"),
    [
        ("file", {"yaml", "grpc_common.config.yaml_file"}),
        ("TLS", {"cryptography", "grpc_common.tls.files"}),
        ("tracing", {"opentelemetry.sdk", "grpc_common.observe.tracing"}),
        ("JWT", {"jwt", "grpc_common.server.jwt"}),
    ],
)
def test_feature_imports_its_library(tmp_path, feature, more):
    """What a server with the defaults is spared is there for one that needs it."""
    arguments, variables = needed(tmp_path, feature)
    if feature == "JWT":  # a token is a secret, and not for plaintext
        variables |= needed(tmp_path, "TLS")[1]
    assert more - imported(PROGRAM, *arguments, **variables) == set()


def test_rich_is_left_to_those_who_import_it():
    """A program has rich, and structlog with it, if it imports rich itself before anything else."""
    program = "import rich, grpc_common as g; g.Server; import structlog; print(structlog.dev.rich.__name__)"
    assert imported(program) == {"rich"}
    program = "import sys, grpc_common; grpc_common.Server; import rich; print(rich.__name__, *sys.modules)"
    assert {"rich", "structlog"} <= imported(program)
