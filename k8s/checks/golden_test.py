import difflib
from pathlib import Path

import pytest

from k8s.checks.rendered import OVERLAYS, reviewed


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_renders_what_was_reviewed(overlay: str) -> None:
    """A change of what an overlay renders is shown, and is a change of its golden file."""
    golden = Path(f"k8s/golden/{overlay}.yaml")
    before = golden.read_text() if golden.exists() else ""
    diff = difflib.unified_diff(
        *(text.splitlines(keepends=True) for text in (before, reviewed(overlay))),
        fromfile=str(golden),
        tofile=f"//k8s:{overlay}",
        n=5,
    )
    changes = "".join(diff)
    assert not changes, f"\n{changes}\nIf that is meant: tools/bazel run //k8s/checks:update_golden"


def test_no_golden_file_is_left_over() -> None:
    """Every golden file is that of an overlay."""
    assert {path.stem for path in Path("k8s/golden").glob("*.yaml")} == set(OVERLAYS)


def test_dashboards_are_reviewed_as_their_own_files() -> None:
    """A golden file says that there is one, and nothing of what is in it; what follows it is there."""
    before, dashboard, after = reviewed("prod").partition("  user-service.json: as in its own file\n")
    assert dashboard
    assert "kind: ConfigMap" in before
    assert after.startswith("kind: ConfigMap\nmetadata:\n")
    assert "panels" not in after
