"""The call after a rollout, in each overlay that has one: it reaches the service, and may call it."""

import pytest
import yaml

from k8s.checks.manifests import annotations, content, get
from k8s.checks.rendered import OVERLAYS
from k8s.checks.servers import Program, programs, servers
from k8s.checks.testing import config_map, overlay

GET_USER = "/user.UserService/GetUser"


def smoke_of(name: str) -> Program | None:
    """Return the program that calls the service of an overlay after a rollout."""
    found = [each for each in programs(overlay(name)) if each.container.get("args") == ["smoke"]]
    return found[0] if found else None


WITH_SMOKE = [name for name in OVERLAYS if smoke_of(name)]


def smoke(name: str) -> Program:
    """Return the program of an overlay that has one."""
    program = smoke_of(name)
    assert program
    return program


def test_who_has_it() -> None:
    """What is released is called, and one trial shows it without certificates."""
    assert {"prod", "gateway-api"} <= set(WITH_SMOKE)


@pytest.mark.parametrize("name", WITH_SMOKE)
def test_it_runs_after_the_rollout(name: str) -> None:
    """The annotation is the one that tools/kubernetes looks for, and the image that of the servers."""
    job = smoke(name).pod.workload
    assert annotations(job)["grpc-on-kubernetes/after-rollout"] == "true"
    [server] = servers(overlay(name))
    assert smoke(name).container["image"] == server.container["image"]


@pytest.mark.parametrize("name", WITH_SMOKE)
def test_it_calls_a_service_as_clients_do(name: str) -> None:
    """The target is a Service before the servers, and the time to wait for it fits into the Job's."""
    host, _, port = smoke(name).load().smoke.target.partition(":")
    [server] = servers(overlay(name))
    service = overlay(name).named("Service", host, server.pod.workload["metadata"]["namespace"])
    assert service in overlay(name).services_of(server.pod)
    assert int(port) in [each["port"] for each in service["spec"]["ports"]]
    deadline = smoke(name).pod.workload["spec"]["activeDeadlineSeconds"]
    assert 2 * smoke(name).load().smoke.timeout + 60 <= deadline


@pytest.mark.parametrize("name", WITH_SMOKE)
def test_it_has_the_certificate_of_a_caller(name: str) -> None:
    """Where servers have TLS it has the Secret of a Certificate with a name that may call GetUser."""
    [server] = servers(overlay(name))
    directory = smoke(name).load().smoke.tls_directory
    assert bool(directory) == bool(server.config.server.tls.directory)
    if not directory:
        return
    [mount] = [each for each in smoke(name).container["volumeMounts"] if each["mountPath"] == str(directory)]
    [volume] = [each for each in smoke(name).pod.spec["volumes"] if each["name"] == mount["name"]]
    certificates = overlay(name).of_kind("Certificate")
    [mine] = [each for each in certificates if get(each, "spec.secretName") == volume["secret"]["secretName"]]
    settings = yaml.safe_load(content(config_map(overlay(name)))["config.yaml"])
    assert set(get(mine, "spec.dnsNames")) & set(settings["server"]["allowed_callers"][GET_USER])
    host = smoke(name).load().smoke.target.partition(":")[0]
    [theirs] = [each for each in certificates if get(each, "metadata.name") == "user-service"]
    assert host in get(theirs, "spec.dnsNames")
