"""Users as text: a table for people, JSON, CSV or TSV for programs."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

from rich.cells import cell_len
from user import user_service_pb2 as pb

type Format = Literal["table", "json", "csv", "tsv"]

FORMATS: tuple[Format, ...] = get_args(Format.__value__)

_COLUMNS = ("id", "name", "email")

# Characters of a UUID, of most names, and the emails that follow are not padded.
_LEAST_WIDTHS = (36, 20)

# Control characters, separators of lines, and what turns the direction of the text after it. The service
# stores no control characters, but what answers may be another one.
_DANGEROUS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""Return `text` with what could act on a terminal written as in Python: `\x1b`, `\n`."""
    return _DANGEROUS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def renderer(chosen: Format) -> Callable[[Sequence[pb.User]], str]:
    """Return what makes the text of one page after the other; a head comes with the first."""
    match chosen:
        case "table":
            return _Table()
        case "json":
            return _json
        case "csv":
            return _Csv()
        case "tsv":
            return _tsv


def _rows(users: Iterable[pb.User]) -> list[tuple[str, str, str]]:
    return [(visible(user.id), visible(user.name), visible(user.email)) for user in users]


class _Table:
    """Columns as wide as the first page needs; a wider row later on only moves its own end."""

    def __init__(self) -> None:
        self._widths: list[int] = []

    def __call__(self, users: Sequence[pb.User]) -> str:
        rows = _rows(users)
        if not self._widths:
            rows.insert(0, ("ID", "NAME", "EMAIL"))
            self._widths = [
                max(least, *(cell_len(row[column]) for row in rows))
                for column, least in enumerate(_LEAST_WIDTHS)
            ]
        return "".join(self._line(row) for row in rows)

    def _line(self, row: tuple[str, ...]) -> str:
        # Not ljust: a Chinese character takes two cells, an accent of its own none.
        padded = [
            text + " " * (width - cell_len(text)) for text, width in zip(row, self._widths, strict=False)
        ]
        return "   ".join([*padded, row[-1]]) + "\n"


def _json(users: Sequence[pb.User]) -> str:
    return "".join(_json_line({name: getattr(user, name) for name in _COLUMNS}) for user in users)


def _json_line(values: dict[str, str]) -> str:
    text = json.dumps(values, ensure_ascii=False)
    return _DANGEROUS.sub(lambda match: json.dumps(match[0])[1:-1], text) + "\n"


class _Csv:
    def __init__(self) -> None:
        self._head: list[tuple[str, str, str]] = [_COLUMNS]

    def __call__(self, users: Sequence[pb.User]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(self._head + _rows(users))
        self._head = []
        return text.getvalue()


def _tsv(users: Sequence[pb.User]) -> str:
    return "".join("\t".join(row) + "\n" for row in _rows(users))
