"""Overlays with one thing broken, for the tests of rules."""

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from k8s.checks import rendered
from k8s.checks.lint import EXTERNAL, read_external
from k8s.checks.manifests import Manifests, Problem, title

REMOVED = object()
"""Instead of a value: nothing."""

_load = functools.cache(rendered.load)


def overlay(name: str) -> Manifests:
    """Return an overlay as it is deployed; its objects are the same for every test, and stay as they are."""
    return Manifests(_load(name), read_external(EXTERNAL))


def changed(name: str, *changes: tuple[str, str, Any]) -> Manifests:
    """Return an overlay with changes: object as `Kind/name`, path as `spec.ports.0.name`, and value.

    A key with dots is the last and in brackets: `metadata.annotations[a.b/c]`.
    """
    manifests = Manifests(copy.deepcopy(_load(name)), read_external(EXTERNAL))
    for wanted, path, value in changes:
        [manifest] = [each for each in manifests.objects if title(each) == wanted]
        _set(manifest, path, value)
    return manifests


def without(name: str, unwanted: str) -> Manifests:
    """Return an overlay without one object."""
    manifests = overlay(name)
    manifests.objects = [each for each in manifests.objects if title(each) != unwanted]
    return manifests


def configured(name: str, **server: Any) -> Manifests:
    """Return an overlay with other settings in the section `server` of its config.yaml."""
    manifests = changed(name)
    data = config_map(manifests)["data"]
    settings = yaml.safe_load(data["config.yaml"])
    settings["server"] |= server
    data["config.yaml"] = yaml.safe_dump(settings)
    return manifests


def config_map(manifests: Manifests) -> Any:
    """Return the ConfigMap with the config.yaml of the server."""
    name = "user-service-config-"
    return next(each for each in manifests.objects if each["metadata"]["name"].startswith(name))


def with_variables(manifests: Manifests, **variables: str) -> Manifests:
    """Return the manifests, whose server now has these variables in the place of those of the same names."""
    [deployment] = [each for each in manifests.objects if title(each) == "Deployment/user-service"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    kept = [each for each in container["env"] if each["name"] not in variables]
    container["env"] = kept + [{"name": name, "value": value} for name, value in variables.items()]
    return manifests


def texts(rule: Callable[..., Iterator[Problem]], *arguments: Any) -> list[str]:
    """Return what a rule says."""
    return [str(problem) for problem in rule(*arguments)]


def _set(manifest: Any, path: str, value: Any) -> None:
    path, _, last = path.removesuffix("]").partition("[")
    keys = path.split(".") + ([last] if last else [])
    for key in keys[:-1]:
        manifest = manifest[int(key)] if isinstance(manifest, list) else manifest.setdefault(key, {})
    last_key = int(keys[-1]) if isinstance(manifest, list) else keys[-1]
    if value is REMOVED:
        del manifest[last_key]
    else:
        manifest[last_key] = value
