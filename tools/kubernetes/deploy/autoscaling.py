"""The replicas of Deployments that an autoscaler counts."""

from collections.abc import Iterator
from dataclasses import dataclass

import click

from tools.kubernetes.deploy.kubectl import Kubectl
from tools.kubernetes.deploy.live import find, in_namespace, managers_of, resource_of
from tools.kubernetes.deploy.manifests import MANAGER, SET_LABEL, Manifests, Object, name_of, to_yaml
from tools.kubernetes.deploy.text import printable

_HANDOVER = f"{MANAGER}-replicas"
"""Owns the replicas from when they are no longer rendered until the autoscaler sets them."""

_KINDS = ("HorizontalPodAutoscaler", "ScaledObject")


@dataclass(frozen=True)
class Autoscalers:
    """Those of an overlay, and those of the cluster."""

    kubectl: Kubectl
    rendered: list[Object]
    live: list[Object]
    name: str
    """What the overlay's objects are labelled with."""

    @classmethod
    def find(cls, kubectl: Kubectl, manifests: Manifests) -> Autoscalers:
        """Find them.

        Raises:
            KubectlError: the cluster can't tell.

        """
        live = kubectl.objects(
            "horizontalpodautoscalers.v2.autoscaling", f"--namespace={manifests.namespace}"
        )
        return cls(kubectl, manifests.of_kind(*_KINDS), live, manifests.name)

    def without_replicas(self, manifests: Manifests) -> Manifests:
        """Return the manifests without the replicas of Deployments that have an autoscaler now or then."""
        objects = [
            _without_replicas(item) if item["kind"] == "Deployment" and self._of(item) else item
            for item in manifests.objects
        ]
        return Manifests(objects)

    def kept(self, manifests: Manifests) -> Manifests:
        """Return the manifests with the replicas that stay as they are, for comparing."""
        objects = [self._kept(item) if item["kind"] == "Deployment" else item for item in manifests.objects]
        return Manifests(objects)

    def ending(self, deployment: Object) -> list[Object]:
        """Return the autoscalers that are removed with this deployment, after which its replicas hold."""
        return [] if self._staying(deployment) else self._of(deployment)

    def notes(self, deployments: list[Object]) -> Iterator[str]:
        """Yield what will become of the replicas that Deployments of the overlay have."""
        for item in deployments:
            if "replicas" not in item["spec"]:
                continue
            if staying := self._staying(item):
                yield (
                    f"{name_of(item)}: replicas: {item['spec']['replicas']} is left out,"
                    f" since {_names(staying)} counts them"
                )
            elif ending := self._of(item):
                yield (
                    f"{name_of(item)}: replicas: {item['spec']['replicas']} holds"
                    f" once {_names(ending)} is removed"
                )

    def hand_over(self, deployment: Object, live: Object) -> None:
        """Keep the replicas that run, where they were rendered once and are not any more.

        The API server would set them to its default, 1, until the autoscaler has counted.
        """
        if "replicas" in deployment["spec"] or not _owns_replicas(live):
            return
        kept = {
            "apiVersion": deployment["apiVersion"],
            "kind": deployment["kind"],
            "metadata": {key: deployment["metadata"][key] for key in ("name", "namespace")},
            "spec": {"replicas": live["spec"]["replicas"]},
        }
        options = ["--server-side", f"--field-manager={_HANDOVER}", "--filename=-", "--force-conflicts"]
        self.kubectl.read("apply", *options, stdin=to_yaml([kept]))

    def wake(self, deployment: Object) -> None:
        """Give a Deployment of 0 replicas some again, where its autoscaler would not, and say so."""
        live = find(self.kubectl, deployment)
        if not live or live["spec"]["replicas"]:
            return
        autoscalers = self._of(deployment)
        if "replicas" in deployment["spec"] or not autoscalers or any(map(_may_be_zero, autoscalers)):
            click.secho(f"{name_of(deployment)} has 0 replicas: no pod will serve", fg="yellow", err=True)
            return
        replicas = max(each["spec"].get("minReplicas", 1) for each in autoscalers)
        options = [*in_namespace(deployment), f"--replicas={replicas}"]
        self.kubectl.read("scale", resource_of(deployment), *options)
        click.echo(
            f"{name_of(deployment)} had 0 replicas, at which {_names(autoscalers)} does nothing:"
            f" it has {replicas} now, the least that this allows"
        )

    def _kept(self, deployment: Object) -> Object:
        live = None if "replicas" in deployment["spec"] else find(self.kubectl, deployment)
        if not live:
            return deployment
        return deployment | {"spec": deployment["spec"] | {"replicas": live["spec"]["replicas"]}}

    def _of(self, deployment: Object) -> list[Object]:
        return [each for each in [*self.rendered, *self.live] if _scales(each, deployment)]

    def _staying(self, deployment: Object) -> list[Object]:
        rendered = {each["metadata"]["name"] for each in self.rendered}
        return [each for each in self._of(deployment) if not self._is_ours(each) or _origins(each) & rendered]

    def _is_ours(self, autoscaler: Object) -> bool:
        # KEDA labels what it makes as the ScaledObject is.
        return bool(autoscaler["metadata"].get("labels", {}).get(SET_LABEL) == self.name)


def _without_replicas(deployment: Object) -> Object:
    return deployment | {
        "spec": {key: value for key, value in deployment["spec"].items() if key != "replicas"}
    }


def _scales(autoscaler: Object, deployment: Object) -> bool:
    target = autoscaler["spec"].get("scaleTargetRef", {})
    kind = target.get("kind", "Deployment")  # KEDA's default
    return bool(kind == "Deployment" and target.get("name") == deployment["metadata"]["name"])


def _origins(autoscaler: Object) -> set[str]:
    """Return the names by which an autoscaler may be rendered: its own, and that of what made it."""
    metadata = autoscaler["metadata"]
    return {metadata["name"], *(each["name"] for each in metadata.get("ownerReferences", []))}


def _may_be_zero(autoscaler: Object) -> bool:
    owners = [each["kind"] for each in autoscaler["metadata"].get("ownerReferences", [])]
    return "ScaledObject" in [autoscaler["kind"], *owners] or autoscaler["spec"].get("minReplicas") == 0


def _names(autoscalers: list[Object]) -> str:
    return printable(", ".join(sorted({name_of(each) for each in autoscalers})))


def _owns_replicas(live: Object) -> bool:
    managers = managers_of(live, "spec", "replicas")
    return any(each["manager"] == MANAGER and each["operation"] == "Apply" for each in managers)
