import asyncio
import json
from dataclasses import replace

import pytest

from grpc_common.client.channel import channel
from grpc_common.client.resolver.kubernetes import KubernetesEndpoints
from grpc_common.testing.pods import Load, pods
from tools.cluster.testing import running_or_skipped

LABELS = {"app": "app"}
DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "app"},
    "spec": {
        "replicas": 1,
        "strategy": {"rollingUpdate": {"maxSurge": 5, "maxUnavailable": 0}},
        "selector": {"matchLabels": LABELS},
        "template": {
            "metadata": {"labels": LABELS},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "app", "image": "app", "ports": [{"containerPort": 50051}]}],
            },
        },
    },
}
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "app"},
    "spec": {"clusterIP": "None", "selector": LABELS, "ports": [{"name": "grpc", "port": 50051}]},
}


@pytest.fixture
def kubectl(monkeypatch):
    """Return an asynchronous kubectl for a cluster that KUBECONFIG leads to."""
    with running_or_skipped() as running:
        monkeypatch.setenv("KUBECONFIG", str(running.kubeconfig))

        async def kubectl(*arguments, stdin=None):
            return await asyncio.to_thread(running.kubectl, *arguments, stdin=stdin)

        yield kubectl


class Served:
    """The endpoints of a Service whose simulated pods are served here: one of `fleet` for each that comes."""

    def __init__(self, fleet):
        self._free = list(fleet)
        self._pods = {}
        self.came = []
        """All that ever were endpoints."""
        self.now = []
        """Those that are endpoints now."""

    async def watch(self):
        """Follow the real API server."""
        async for found in KubernetesEndpoints("app", "default", "grpc").watch():
            # The address of one that is gone may be that of another pod later.
            before, self._pods = self._pods, {}
            for each in found:
                self._pods[each.address] = before.get(each.address) or self._came()
            self.now = [self._pods[each.address] for each in found if not each.terminating]
            yield [replace(each, address=self._pods[each.address].address) for each in found]

    def _came(self):
        self.came.append(self._free.pop())
        return self.came[-1]


async def until(condition):
    """Wait for what tells nobody that it has happened."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.05)


async def test_fifty_pods_added_replaced_and_removed_under_load(kubectl):
    """Each pod of a Deployment costs one connection, and no call fails while it scales and rolls out."""
    for manifest in (DEPLOYMENT, SERVICE):
        await kubectl("apply", "--server-side", "--filename=-", stdin=json.dumps(manifest))
    await kubectl("rollout", "status", "deployment/app", "--timeout=60s")
    async with pods(51 + 10) as fleet:
        served = Served(fleet)
        async with channel("kubernetes:///app.default:grpc", endpoints=served) as opened:
            async with Load(opened).of(8) as load:
                await kubectl("scale", "deployment/app", "--replicas=51")
                await until(lambda: len(served.now) == 51 and all(pod.calls for pod in served.now))
                await kubectl("scale", "deployment/app", "--replicas=5")
                await until(lambda: len(served.now) == 5 and sum(pod.open for pod in fleet) == 5)
                before = set(served.now)
                await kubectl("rollout", "restart", "deployment/app")
                await until(lambda: len(served.now) == 5 and not before & set(served.now))
                await until(lambda: sum(pod.open for pod in fleet) == 5)
                assert all(pod.open for pod in served.now)
            assert load.failures == []
            assert load.done > 100
    assert len(served.came) == 51 + 5
    assert [pod.connections for pod in served.came] == [1] * (51 + 5)
