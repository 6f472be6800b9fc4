import asyncio
import json

import pytest

from grpc_common.client.resolver.kubernetes import KubernetesEndpoints
from grpc_common.testing.api_server import endpoint_slice
from tools.cluster.cluster import ClusterError
from tools.cluster.testing import running_or_skipped
from tools.lab.cluster_api import ClusterApi


@pytest.fixture(scope="module")
def cluster():
    """Return a cluster that all tests share."""
    with running_or_skipped() as running:
        yield running


def piece(api, *addresses, **conditions):
    """Return a slice of the API's namespace."""
    return endpoint_slice("pods-1", addresses, service="pods", namespace=api.namespace, conditions=conditions)


async def seen(watch, address):
    """Return the endpoint of this address once the watch has it alone; at first it may have none."""
    async with asyncio.timeout(30):
        async for endpoints in watch:
            if [endpoint.address for endpoint in endpoints] == [address]:
                return endpoints[0]
    raise AssertionError("the watch ended")


async def test_clients_follow_what_a_fleet_puts(cluster, monkeypatch):
    """With the kubeconfig that it has for clients, each change is seen: the last of a burst is what stays."""
    async with ClusterApi.running(cluster) as api:
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig))
        api.put(piece(api, "10.244.0.2", ready=True, serving=True, terminating=False))
        watch = KubernetesEndpoints("pods", api.namespace, "grpc").watch()
        endpoint = await seen(watch, "10.244.0.2:50051")
        assert not endpoint.terminating
        for last in range(3, 9):
            api.put(piece(api, f"10.244.0.{last}", ready=True))
        api.put(piece(api, "10.244.0.9", ready=False, serving=True, terminating=True))
        assert (await seen(watch, "10.244.0.9:50051")).terminating
        await watch.aclose()


async def test_clients_may_read_slices_and_no_more(cluster):
    """What leads clients to the API server lets them see their own namespace's slices, and change nothing."""
    async with ClusterApi.running(cluster) as api, ClusterApi.running(cluster) as other:
        assert api.namespace != other.namespace

        def may(verb, resource, namespace):
            asked = ["auth", "can-i", verb, resource, f"--namespace={namespace}"]
            try:
                return cluster.kubectl(*asked, f"--kubeconfig={api.kubeconfig}") == "yes\n"
            except ClusterError:  # kubectl's way to say no
                return False

        slices = "endpointslices.discovery.k8s.io"
        for verb in ("get", "list", "watch"):
            assert may(verb, slices, api.namespace), verb
            assert not may(verb, slices, other.namespace), verb
            assert not may(verb, "secrets", api.namespace), verb
        for verb in ("create", "update", "patch", "delete"):
            assert not may(verb, slices, api.namespace), verb


async def test_slice_that_the_api_server_refuses(cluster):
    """It ends what goes on, with the API server's own words."""
    with pytest.raises(ExceptionGroup) as caught:
        async with ClusterApi.running(cluster) as api:
            api.put(piece(api, "127.0.0.2", ready=True))
            await asyncio.Event().wait()
    [error] = caught.value.exceptions
    assert str(error).startswith("the API server refused the EndpointSlice pods-1: EndpointSlice")
    assert "may not be in the loopback range" in str(error)


async def test_slices_are_not_kubernetes_own(cluster):
    """They say who manages them, so that no controller of the cluster takes them for its own."""
    async with ClusterApi.running(cluster) as api:
        api.put(piece(api, "10.244.0.2", ready=True))
        get = ("get", "endpointslices", f"--namespace={api.namespace}", "--output=json")
        async with asyncio.timeout(30):
            while not (found := json.loads(await asyncio.to_thread(cluster.kubectl, *get))["items"]):
                pass
    assert found[0]["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] == "lab"
