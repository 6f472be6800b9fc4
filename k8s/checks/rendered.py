"""The rendered output of the overlays, for tests.

Bazel lays it below the directory where a test starts: `k8s/prod.yaml` is what `//k8s:prod` made.
"""

from pathlib import Path
from typing import Any

import yaml

_FOLDER = Path("k8s")

OVERLAYS: tuple[str, ...] = tuple(sorted(file.stem for file in _FOLDER.glob("*.yaml")))
"""The names of all overlays that the test was given."""


def load(overlay: str) -> list[dict[str, Any]]:
    """Return the objects of an overlay, in the order in which they are applied.

    Raises:
        FileNotFoundError: the test has not `//k8s:<overlay>` among its data.

    """
    text = (_FOLDER / f"{overlay}.yaml").read_text("utf-8")
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]
