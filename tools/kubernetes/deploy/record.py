"""The record of what was deployed, in the cluster: who deploys need not list kinds to find what to remove."""

from dataclasses import dataclass

from tools.kubernetes.deploy.kubectl import Kubectl, KubectlError
from tools.kubernetes.deploy.live import find, get_all
from tools.kubernetes.deploy.manifests import SET_LABEL, Manifests, Object

_KEY = "objects"
"""The key of the ConfigMap whose lines are the objects."""

_NOT_RECORDED = {"Namespace", "PersistentVolumeClaim"}
"""What is never removed by itself: data goes with its namespace only."""

_NO_SUCH_KIND = ("doesn't have a resource type", "no matches for kind")
"""What kubectl says where the definition of a custom kind is gone, and with it all its objects."""


@dataclass(frozen=True, order=True)
class Reference:
    """An object of the overlay's namespace, in whatever version of its group."""

    group: str
    kind: str
    name: str

    def __str__(self) -> str:
        """As kubectl takes it: `Deployment.apps/user-service`, `ConfigMap/config`."""
        return f"{self.kind}{f'.{self.group}' if self.group else ''}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read what `str` makes."""
        kind, _, name = text.partition("/")
        kind, _, group = kind.partition(".")
        return cls(group, kind, name)

    @classmethod
    def of(cls, item: Object) -> Reference:
        """Return what names an object."""
        return cls(item["apiVersion"].rpartition("/")[0], item["kind"], item["metadata"]["name"])


def rendered(manifests: Manifests) -> set[Reference]:
    """Return what is deployed now, in so far as it may be removed one day."""
    return {
        Reference.of(item)
        for item in manifests.objects
        if item["kind"] not in _NOT_RECORDED and item["metadata"].get("namespace") == manifests.namespace
    }


@dataclass(frozen=True)
class Record:
    """The ConfigMap `NAME-deployed` of an overlay."""

    kubectl: Kubectl
    manifests: Manifests

    def read(self) -> set[Reference] | None:
        """Return what was deployed, or None if there is no record.

        Raises:
            KubectlError: the cluster can't tell.

        """
        live = find(self.kubectl, self.manifest(set()))
        lines = live.get("data", {}).get(_KEY, "").split() if live else []
        return {Reference.parse(line) for line in lines} if live else None

    def manifest(self, references: set[Reference]) -> Object:
        """Return the record of all that is deployed.

        It has not the label of what it names: versions without a record remove what has it.
        """
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"{self.manifests.name}-deployed", "namespace": self.manifests.namespace},
            "data": {_KEY: "".join(f"{each}\n" for each in sorted(references))},
        }

    def find(self, references: set[Reference]) -> list[Object]:
        """Return those that the cluster has, and that are still labelled as deployed from here.

        Raises:
            KubectlError: the cluster can't tell.

        """
        return [each for each in self._find(sorted(references)) if self._is_ours(each)]

    def find_obsolete(self, recorded: set[Reference] | None) -> list[Object]:
        """Return those of a record that are no longer rendered.

        Raises:
            KubectlError: the cluster can't tell.

        """
        return self.find((recorded or set()) - rendered(self.manifests))

    def find_own(self) -> list[Object]:
        """Return the record itself, if there is one."""
        live = find(self.kubectl, self.manifest(set()))
        return [live] if live else []

    def _find(self, references: list[Reference]) -> list[Object]:
        try:
            return get_all(self.kubectl, map(str, references), f"--namespace={self.manifests.namespace}")
        except KubectlError as error:
            if not any(text in str(error) for text in _NO_SUCH_KIND):
                raise
        if len(references) == 1:
            return []
        # One such kind, and kubectl asks for none of the others.
        return [found for each in references for found in self._find([each])]

    def _is_ours(self, live: Object) -> bool:
        return bool(live["metadata"].get("labels", {}).get(SET_LABEL) == self.manifests.name)
