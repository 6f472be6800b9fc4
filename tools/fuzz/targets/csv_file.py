"""Files of users to import."""

import asyncio
import csv
import io
from collections.abc import Sequence

from services.user.cli.csv_file import HeaderError, Rejected, Row, read_users
from tools.fuzz.input_file import input_file
from tools.fuzz.properties import check_shown

_loop = asyncio.new_event_loop()


def fuzz(data: bytes) -> None:
    """Each line is a user or has a reason; what is written as the rejects are can be read again."""
    try:
        records = read(data)
    except HeaderError as error:
        check_shown(str(error), 2**20)
        return
    numbers = [record.line for record in records]
    assert numbers == sorted(set(numbers))
    assert all(1 < number <= data.count(b"\n") + 1 for number in numbers)
    for record in records:
        if isinstance(record, Rejected):
            check_shown(record.reason)
    middle = numbers[len(numbers) // 2] if numbers else 2
    assert read(data, middle) == [record for record in records if record.line >= middle]
    rows = [record for record in records if isinstance(record, Row)]
    again = read(written(rows))
    assert [(row.name, row.email) for row in again] == [(row.name, row.email) for row in rows]


def read(data: bytes, from_line: int = 1) -> Sequence[Row | Rejected]:
    """Return what is on the lines."""

    async def collect() -> Sequence[Row | Rejected]:
        with input_file(data).open("rb") as file:
            return [record async for record in read_users(file.fileno(), from_line)]

    return _loop.run_until_complete(collect())


def written(rows: Sequence[Row]) -> bytes:
    """Return a file as `import --rejects` writes it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("name", "email"))
    writer.writerows((row.name, row.email) for row in rows)
    return text.getvalue().encode()
