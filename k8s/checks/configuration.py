"""The configuration that each server will read is one that it can read, and holds no secret."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path

from grpc_common import ConfigError
from grpc_common.config.settings import settings
from k8s.checks.manifests import Manifests, Problem, content, get, metadata
from k8s.checks.servers import CONFIG_FILE, Program, Server, programs, servers, volume_at
from services.user.config import UserServiceConfig

_SETTINGS = "the settings are in libs/grpc_common/README.md and services/user/README.md"

_VARIABLES = {setting.variable for setting in settings(UserServiceConfig)} - {""}

_SECTIONS = tuple(
    UserServiceConfig.env_prefix + f"{setting.path[-2].upper()}_"
    for setting in settings(UserServiceConfig)
    if setting.path[-2] != "server"
)
"""What the variables of a section begin with: DRAIN_, TRACING_."""

_SIMILAR = 0.85
"""How much of a name must agree for it to be taken for a setting: HEALTHPORT is, POD_NAME is not."""

_SECRET_NAME = re.compile(r"(PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY|PRIVATE_?KEY)$")

_PASSWORD = re.compile(r"://[^\s/:@]*:(?!\$\()[^\s/@]+@")
"""Of a URL; `$(NAME)` in its place is a variable's."""


def load_configurations(manifests: Manifests) -> Iterator[Problem]:
    """Each configuration is there, and its loader finds no mistake in it."""
    for program in programs(manifests):
        if program.path and program.file is None:
            what = f"{CONFIG_FILE}={program.path} is in no ConfigMap that is mounted there"
            yield Problem(program.pod.workload, f"{program.field}.env", what, "mount one with this key")
        try:
            program.load()
        except ConfigError as error:
            text = _without_secrets(manifests, str(error))
            yield from (_mistake(program, line) for line in text.splitlines())


def _without_secrets(manifests: Manifests, text: str) -> str:
    """Return what the loader says, which quotes values, without those that Secrets hold."""
    for secret in manifests.of_kind("Secret"):
        for value in filter(None, content(secret).values()):
            text = text.replace(repr(value), "***")
    return text


def _mistake(program: Program, line: str) -> Problem:
    """Return what the loader says, at the ConfigMap or at the variable that it speaks of."""
    if program.file and line.startswith(program.file[1]):
        return Problem(program.file[0], "data", line, _SETTINGS)
    return Problem(program.pod.workload, f"{program.field}.env", line, _SETTINGS)


def set_only_what_is_read(manifests: Manifests) -> Iterator[Problem]:
    """No variable is one letter away from a setting, or named like a section that has no such setting."""
    for program in programs(manifests):
        for name in program.environment:
            near = difflib.get_close_matches(name, _VARIABLES, 1, _SIMILAR)
            if name not in _VARIABLES and (near or name.startswith(_SECTIONS)):
                fix = f"did you mean {near[0]}?" if near else _SETTINGS
                field = f"{program.field}.env[{name}]"
                yield Problem(program.pod.workload, field, "is no setting of the server", fix)


def share_no_sqlite(manifests: Manifests) -> Iterator[Problem]:
    """More than one replica never uses SQLite: each pod would have a file, and users, of its own."""
    for server in servers(manifests):
        if server.config.database.is_postgresql:
            continue
        workload = server.pod.workload
        replicas = (get(workload, "spec") or {}).get("replicas", 1)
        fix = "set DATABASE_URL to a postgresql:// URL, or have one replica and no autoscaler"
        if replicas > 1:
            yield Problem(workload, "spec.replicas", f"{replicas} replicas have a SQLite file each", fix)
        for scaler in manifests.of_kind("HorizontalPodAutoscaler"):
            if get(scaler, "spec.scaleTargetRef.name") == metadata(workload, "name"):
                yield Problem(scaler, "spec.maxReplicas", "each replica has a SQLite file of its own", fix)


def mount_what_is_read(manifests: Manifests) -> Iterator[Problem]:
    """The folder with a server's certificates is in a volume, and so is that of its SQLite file."""
    for server in servers(manifests):
        for variable, folder in _folders(server):
            mounted = (
                volume_at(server.pod, server.container, str(each)) for each in (folder, *folder.parents)
            )
            if not any(mounted):
                fix = "name the mountPath of one, or mount one there"
                yield server.problem(f"env[{variable}]", f"{folder} is in no volume of the container", fix)


def _folders(server: Server) -> Iterator[tuple[str, Path]]:
    tls, database = server.config.server.tls.directory, server.config.database
    if tls:
        yield "TLS_DIRECTORY", Path(tls)
    if database.url and not database.is_postgresql:
        yield "DATABASE_URL", database.path.parent


def hold_no_secret(manifests: Manifests) -> Iterator[Problem]:
    """No variable, ConfigMap or Secret that is applied from here holds a password in plain text."""
    fix = "keep it in a Secret that is not in the repository, and name that in external.yaml"
    for pod in manifests.pods:
        for field, container in pod.containers:
            for variable in container.get("env") or []:
                value = str(variable.get("value", ""))
                if value and (_SECRET_NAME.search(variable["name"]) or _PASSWORD.search(value)):
                    where = f"{field}.env[{variable['name']}]"
                    yield Problem(pod.workload, where, "is a secret in plain text", fix)
    for manifest in manifests.of_kind("ConfigMap", "Secret"):
        for key, value in content(manifest).items():
            if _PASSWORD.search(value):
                yield Problem(manifest, f"data[{key}]", "holds a URL with a password", fix)
