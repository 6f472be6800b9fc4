"""Writes into docs/operations.md what rings in which outage, to be reviewed and committed."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from k8s.checks.manifests import Manifests
from k8s.checks.monitoring import write_rules
from k8s.checks.rendered import load
from k8s.checks.scenarios import outages, table, with_table


def main() -> None:
    """Replace the table."""
    with TemporaryDirectory() as folder:
        rules = write_rules(Manifests(load("prod")), Path(folder))
        rung = {each.name: each.rings(rules, "user-service", "user-service-staging") for each in outages()}
    file = Path(os.environ["BUILD_WORKSPACE_DIRECTORY"], "docs/operations.md")
    file.write_text(with_table(file.read_text(), table(rung)))
    print(f"wrote {len(rung)} outages into docs/operations.md")


if __name__ == "__main__":
    main()
