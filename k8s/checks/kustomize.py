"""Renders kustomizations that a test makes up of the files of k8s/."""

import os
import shutil
import subprocess
from pathlib import Path

import yaml

from k8s.checks.lint import EXTERNAL, read_external
from k8s.checks.manifests import Manifests

_KUSTOMIZE = Path(os.environ.get("KUSTOMIZE") or shutil.which("kustomize") or "kustomize").absolute()
_FOLDERS = ("base", "components", "overlays")


def copy_files(folder: Path) -> Path:
    """Copy what overlays are made of, since Kustomize follows no links out of it, and return the folder."""
    for each in _FOLDERS:
        shutil.copytree(Path("k8s") / each, folder / each)
    return folder


def build(files: Path, name: str) -> Manifests:
    """Return what the kustomization in a folder of a copy of k8s/ renders.

    Raises:
        AssertionError: Kustomize refuses it; the message is what it printed.

    """
    done = subprocess.run([_KUSTOMIZE, "build", files / name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    objects = [each for each in yaml.load_all(done.stdout, yaml.CSafeLoader) if each]
    return Manifests(objects, read_external(EXTERNAL))


def compose(files: Path, resource: str, *components: str) -> Manifests:
    """Return what a folder, such as `overlays/prod`, is with components that it has not, in its namespace."""
    own = yaml.safe_load((files / resource / "kustomization.yaml").read_text())
    folder = files / "overlays" / "composed"
    folder.mkdir(exist_ok=True)
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": own.get("namespace", "user-service"),
        "resources": [f"../../{resource}"],
        "components": [f"../../components/{each}" for each in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return build(files, "overlays/composed")


def names(folder: str) -> list[str]:
    """Return the folders with a kustomization of a folder of k8s/."""
    return sorted(file.parent.name for file in Path("k8s", folder).glob("*/kustomization.yaml"))


def components_of(folder: Path) -> set[str]:
    """Return the names of the components that a kustomization has, with those that they have."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    paths = [folder / each for each in kustomization.get("components", ())]
    resources = [folder / each for each in kustomization.get("resources", ()) if (folder / each).is_dir()]
    return {path.name for path in paths}.union(*map(components_of, paths + resources))


OVERLAYS = names("overlays")
USED = set().union(*(components_of(Path("k8s/overlays", name)) for name in OVERLAYS))
"""The components that overlays have."""

UNUSED = [name for name in names("components") if name not in USED]
"""Those that an overlay of yours may have."""
