"""The rendered output of the overlays, for tests.

Bazel lays it below the directory where a test starts: `k8s/prod.yaml` is what `//k8s:prod` made.
"""

import re
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


def reviewed(overlay: str) -> str:
    """Return what of an overlay is reviewed in its golden file: all of it but the dashboards.

    Those are reviewed as the files that they are made of: a diff of JSON within YAML tells nothing.
    """
    text = (_FOLDER / f"{overlay}.yaml").read_text("utf-8")
    return re.sub(
        r"^(  \S+\.json: )\|-?\n(?:    .*\n|\n)+", r"\1as in its own file\n", text, flags=re.MULTILINE
    )
