"""Our servers in an overlay, and the configuration that each will have: a file with variables over it."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import yaml

from grpc_common import ConfigError, load
from k8s.checks.manifests import Manifest, Manifests, Pod, Problem, content, find, get, metadata
from services.user.config import UserServiceConfig

type Environment = Mapping[str, str | None]
"""Variables; None is a value that only the cluster knows."""

CONFIG_FILE = f"{UserServiceConfig.env_prefix}CONFIG_FILE"
"""The variable that names a program's file."""

_IMAGE = re.compile(r"(?:.*/)?user-service(?:[:@].*)?")
"""Of our programs, which may go without a file: they have the defaults then."""

_OPTION = "--config"


@dataclass(frozen=True)
class Program:
    """A container that runs our program: a server, or its migration."""

    pod: Pod
    field: str
    """Where the container is, in its workload."""
    container: Manifest
    environment: Environment
    path: str | None
    """Of its configuration file, None if it has none."""
    file: tuple[Manifest, str] | None
    """The ConfigMap and the key in it that are at the path, if they are here."""

    def load(self) -> UserServiceConfig:
        """Return the configuration in effect; what only the cluster knows has its default.

        Raises:
            ConfigError: something in it is wrong; the file is called by its name alone.

        """
        known = {
            name: value if value is not None else _UNKNOWN[name]
            for name, value in self.environment.items()
            if value is not None or name in _UNKNOWN
        }
        if self.file is None:
            return load(UserServiceConfig, environ=known)
        config_map, key = self.file
        with TemporaryDirectory() as folder:
            # Not the key: it may lead elsewhere.
            file = Path(folder, "config.yaml")
            file.write_text(content(config_map)[key], "utf-8")
            try:
                return load(UserServiceConfig, file, known)
            except ConfigError as error:
                raise ConfigError(str(error).replace(str(file), key)) from None


_UNKNOWN = {"DATABASE_URL": "postgresql://unknown/unknown"}
"""What stands for a value that only the cluster knows, where the default would mean another thing."""


@dataclass(frozen=True)
class Server:
    """A program that serves, and the configuration that it will have."""

    program: Program
    config: UserServiceConfig

    @property
    def pod(self) -> Pod:
        """The pod that it is in."""
        return self.program.pod

    @property
    def container(self) -> Manifest:
        """Its container."""
        return self.program.container

    @property
    def field(self) -> str:
        """Where the container is, in its workload."""
        return self.program.field

    @property
    def ports(self) -> set[str | int]:
        """The numbers and names of the container ports that take calls."""
        listeners = [each.address for each in self.config.server.listen]
        numbers = {self.config.server.port} | {
            int(each.rpartition(":")[2]) for each in listeners if not each.startswith("unix:")
        }
        declared = self.container.get("ports") or []
        return numbers | {
            each["name"] for each in declared if each.get("containerPort") in numbers and "name" in each
        }

    def ports_of(self, service: Manifest) -> Iterator[tuple[str, Manifest]]:
        """Yield each port of a Service that leads to calls, with its field; one for metrics does not."""
        for field, port in find(service, "spec.ports[]"):
            if port.get("targetPort", port["port"]) in self.ports:
                yield field, port

    @property
    def longest_stream(self) -> float:
        """The seconds that a stream may take; infinite, if there is no limit."""
        return self.config.server.default_stream_deadline or math.inf

    def problem(self, field: str, what: str, fix: str) -> Problem:
        """Return a problem of a field of the container."""
        return Problem(self.pod.workload, f"{self.field}.{field}", what, fix)


def programs(manifests: Manifests) -> Iterator[Program]:
    """Yield each container that has CONFIG_FILE, our image, or --config with a file of ours."""
    for pod in manifests.pods:
        for field, container in pod.containers:
            environment = _environment(manifests, pod, container)
            option, variable = _argument(container, environment), environment.get(CONFIG_FILE)
            path = option or variable
            place = _config_map_at(manifests, pod, container, path) if path else None
            # Many other programs have an option of that name.
            if variable or (place and _is_ours(*place)) or _IMAGE.fullmatch(container.get("image", "")):
                yield Program(pod, field, container, environment, path, place)


def pods_of_programs(manifests: Manifests) -> list[Pod]:
    """Return the pods in which our programs run, each once."""
    return list({id(program.pod): program.pod for program in programs(manifests)}.values())


def _is_ours(config_map: Manifest, key: str) -> bool:
    """Return whether a file has sections of grpc_common's."""
    try:
        sections = yaml.load(content(config_map)[key], yaml.CSafeLoader)
    except yaml.YAMLError:
        return False
    return isinstance(sections, dict) and bool(sections.keys() & UserServiceConfig.model_fields.keys())


def _argument(container: Manifest, environment: Environment) -> str | None:
    """Return what --config names, which goes before the variable."""
    given = [*(container.get("command") or []), *(container.get("args") or [])]
    arguments = [_expand(str(each), environment) for each in given]
    for number, argument in enumerate(arguments):
        if argument == _OPTION:
            return next(iter(arguments[number + 1 :]), None)
        if argument.startswith(f"{_OPTION}="):
            return argument.removeprefix(f"{_OPTION}=")
    return None


def servers(manifests: Manifests) -> Iterator[Server]:
    """Yield each server whose configuration can be loaded; configuration.py tells of the others."""
    for program in programs(manifests):
        if program.pod.workload["kind"] in ("CronJob", "Job"):
            continue
        try:
            yield Server(program, program.load())
        except ConfigError:
            continue


def volume_at(pod: Pod, container: Manifest, path: str) -> tuple[str, Manifest] | None:
    """Return where in the workload the volume is that is mounted at `path`, and the volume."""
    mounts = container.get("volumeMounts") or []
    names = [mount["name"] for mount in mounts if PurePosixPath(mount["mountPath"]) == PurePosixPath(path)]
    return next((found for found in pod.find("spec.volumes[]") if found[1]["name"] in names), None)


def _config_map_at(
    manifests: Manifests, pod: Pod, container: Manifest, file: str
) -> tuple[Manifest, str] | None:
    """Return the ConfigMap and the key in it that are mounted as a file."""
    mounts = [each for each in container.get("volumeMounts") or [] if _inside(each, file) is not None]
    if not mounts:
        return None
    mount = max(mounts, key=lambda each: len(PurePosixPath(each["mountPath"]).parts))  # it hides the others
    for _, volume in pod.find("spec.volumes[]"):
        for source in [volume, *(get(volume, "projected.sources") or [])]:
            if volume["name"] == mount["name"] and (reference := source.get("configMap")):
                namespace = metadata(pod.workload, "namespace")
                found = manifests.named("ConfigMap", reference.get("name", ""), namespace)
                key = _key_at(reference, _inside(mount, file))
                if found and key in content(found):
                    return found, key
    return None


def _inside(mount: Manifest, file: str) -> str | None:
    """Return where in a volume a file is, None if it is not in it."""
    path, place = PurePosixPath(file), PurePosixPath(mount["mountPath"])
    if not path.is_relative_to(place):
        return None
    return str(PurePosixPath(mount.get("subPath", "")) / path.relative_to(place))


def _key_at(reference: Manifest, path: str | None) -> str | None:
    """Return the key that a volume has at a path: that of this name, unless it says otherwise."""
    if items := reference.get("items"):
        return next((item["key"] for item in items if item["path"] == path), None)
    return path


def _environment(manifests: Manifests, pod: Pod, container: Manifest) -> Environment:
    values: dict[str, str | None] = {}
    namespace = metadata(pod.workload, "namespace")
    for source in container.get("envFrom") or []:
        for kind, reference in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
            found = _content(manifests, kind, source.get(reference), namespace)
            values |= {source.get("prefix", "") + key: value for key, value in found.items()}
    for variable in container.get("env") or []:
        value = variable.get("value", "")
        for kind, reference in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
            if source := get(variable, f"valueFrom.{reference}"):
                value = _content(manifests, kind, source, namespace).get(source["key"])
        values[variable["name"]] = None if value is None else _expand(value, values)
    return values


def _content(
    manifests: Manifests, kind: str, reference: Manifest | None, namespace: str
) -> Mapping[str, str]:
    found = manifests.named(kind, reference.get("name", ""), namespace) if reference else None
    return content(found) if found else {}


def _expand(value: str, values: Environment) -> str:
    """Put earlier variables in the place of `$(NAME)`, as the kubelet does."""
    return re.sub(r"\$\((\w+)\)", lambda match: values.get(match[1]) or match[0], value)
