import subprocess

from services.user.testing_postgresql import running_postgresql


def test_both_databases_are_measured():
    """The table has the import and the list of each database."""
    command = ["tools/bench/million", "--users", "30", "--imported", "20"]
    with running_postgresql():  # or the test is skipped
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [line.split("│") for line in printed.splitlines() if "│" in line]
    assert [(row[1].strip(), row[2].strip()) for row in rows] == [
        ("sqlite", "import of 20"),
        ("sqlite", "list of 30"),
        ("postgresql", "import of 20"),
        ("postgresql", "list of 30"),
    ]
