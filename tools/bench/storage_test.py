import subprocess


def test_each_way_is_measured():
    """The table has a row for each way, the first of which is what the others are compared with."""
    command = ["tools/bench/storage", "--seconds", "0.05", "--rounds", "1"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [line.split("│") for line in printed.splitlines() if "│" in line]
    assert [row[1].strip() for row in rows] == ["on the event loop", "one thread", "two threads"]
    assert rows[0][3].strip() == "1.0x"
