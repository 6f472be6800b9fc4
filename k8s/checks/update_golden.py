"""Writes what the overlays render into k8s/golden, to be reviewed and committed."""

import os
from pathlib import Path

from k8s.checks.rendered import OVERLAYS, reviewed


def main() -> None:
    """Replace every golden file."""
    golden = Path(os.environ["BUILD_WORKSPACE_DIRECTORY"], "k8s/golden")
    golden.mkdir(exist_ok=True)
    for old in golden.glob("*.yaml"):
        old.unlink()
    for overlay in OVERLAYS:
        (golden / f"{overlay}.yaml").write_text(reviewed(overlay))
    print(f"wrote k8s/golden/{{{','.join(OVERLAYS)}}}.yaml")


if __name__ == "__main__":
    main()
