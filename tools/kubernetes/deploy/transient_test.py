from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tools.cluster.testing import DELAY, FAILS
from tools.kubernetes.deploy import kubectl
from tools.kubernetes.deploy.proxy import Proxy, running_proxy
from tools.kubernetes.deploy.testing import IMAGE, KUBECTL, App
from tools.kubernetes.deploy.transient import is_transient

PASSES = [
    "Unable to connect to the server: net/http: TLS handshake timeout",
    "The connection to the server 10.0.0.1:6443 was refused - did you specify the right host or port?",
    "Unable to connect to the server: dial tcp 10.0.0.1:6443: i/o timeout",
    "Unable to connect to the server: dial tcp: lookup api.example.com: no such host",
    'Get "https://10.0.0.1/api": read tcp 10.0.0.2:1->10.0.0.1:443: read: connection reset by peer',
    "Unable to connect to the server: EOF",
    "Unable to connect to the server: unexpected EOF",
    "error: http2: client connection lost",
    "Error from server: etcdserver: leader changed",
    "Error from server: etcdserver: request timed out",
    "Error from server (TooManyRequests): the server has received too many requests",
    "Error from server: the server responded with the status code 408 but did not return more information",
    "Error from server (ServiceUnavailable): apiserver is shutting down",
    "Error from server (Timeout): the server was unable to return a response in the time allotted",
    "Error from server (InternalError): an error on the server has prevented the request from succeeding",
    "error: error validating data: failed to download openapi: dial tcp: connect: connection refused",
]

STAYS = [
    'Error from server (Forbidden): pods "a" is forbidden: exceeded quota: q',
    'Error from server (NotFound): deployments.apps "EOF" not found',
    "Error from server (Invalid): error when applying: i/o timeout",
    'Error from server (InternalError): failed calling webhook "w": Post "https://w/": connection refused',
    'Error from server: admission webhook "w.example.com" denied the request: EOF',
    "Unable to connect to the server: x509: certificate signed by unknown authority",
    "error: You must be logged in to the server (Unauthorized)",
    "error: timed out waiting for the condition",
    "",
]


@pytest.mark.parametrize("error", PASSES)
def test_an_error_of_the_moment_passes(error: str) -> None:
    """A network, an API server that restarts and etcd that elects a leader are as they were soon."""
    assert is_transient(error)


@pytest.mark.parametrize("error", STAYS)
def test_a_refusal_stays(error: str) -> None:
    """What the API server or a webhook answered it will answer again."""
    assert not is_transient(error)


@contextmanager
def proxied(app: App) -> Iterator[Proxy]:
    """Have the deployment reach its cluster through a proxy."""
    with running_proxy(app.running, app.folder) as (proxy, kubeconfig):
        app.environment["KUBECONFIG"] = str(kubeconfig)
        yield proxy


@pytest.mark.parametrize("fault", ["cut", "503", "stall"])
def test_a_failed_poll_does_not_end_a_deployment(app: App, fault: str) -> None:
    """It is said once that the cluster does not answer, and the rollout is waited for all the same."""
    app.template["metadata"]["annotations"][DELAY] = "3s"
    with proxied(app) as proxy:
        process = app.start_until("Waiting for")
        proxy.fault = fault
        assert process.stdout
        assert any(line.startswith("trying again for up to") for line in process.stdout)
        proxy.fault = ""
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "trying again" not in output


def test_a_failure_at_the_very_start_does_not_end_a_deployment(app: App) -> None:
    """Not even the first question, whose failure may be that of a wrong address."""
    with proxied(app) as proxy:
        proxy.fault = "503"
        process = app.start("deploy", "--yes")
        assert process.stdout
        assert process.stdout.readline().startswith("trying again for up to 10 s")
        proxy.fault = ""
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output


def test_a_request_that_is_never_answered_ends(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load balancer that took it would have kubectl wait for ever, whatever --timeout says."""
    monkeypatch.setattr(kubectl, "_REQUEST_TIMEOUT", 1)
    with running_proxy(app.running, app.folder) as (proxy, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        proxy.fault = "mute"
        with pytest.raises(kubectl.KubectlError) as raised:
            kubectl.Kubectl(KUBECTL, None).read("get", "namespaces")
    assert is_transient(str(raised.value))


def test_a_failed_call_does_not_cancel_a_rollback(app: App) -> None:
    """Of all moments, the one in which it is needed most."""
    app.deploy()
    app.template["spec"]["containers"][0]["image"] = IMAGE + 64 * "2"
    app.template["metadata"]["annotations"][FAILS] = "CrashLoopBackOff"
    with proxied(app) as proxy:
        process = app.start_until("rolling back", "--timeout=6s")
        proxy.fault = "503"
        assert process.stdout
        assert any(line.startswith("trying again for up to") for line in process.stdout)
        proxy.fault = ""
        output, _ = process.communicate(timeout=60)
    assert "was rolled back" in output
    assert app.image() == "1"


def test_a_cluster_that_stays_away_is_told(app: App) -> None:
    """The timeout holds; the error is the one that kubectl had at the end."""
    app.template["metadata"]["annotations"][DELAY] = "20s"
    with proxied(app) as proxy:
        process = app.start_until("Waiting for", "--timeout=3s")
        proxy.fault = "429"
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "while rolling out:" in output
    assert "too many requests" in output
