"""What a migration may do while the release before it runs, and may come back.

A script either adds (the release before works on, without knowing) or takes away (the release before has not
used it any more, and the script says which is the oldest one of these). What is not known to add takes away.
"""

import re
from collections.abc import Iterator, Sequence

from services.user.storage.migrate import Step

_NAME = r"(?:\"(?:[^\"]|\"\")+\"|\w+)(?:\.\w+)?"


def _pattern(*alternatives: str) -> re.Pattern[str]:
    return re.compile("|".join(alternatives).replace("NAME", _NAME), re.IGNORECASE | re.DOTALL)


_QUOTED = _pattern(
    r"\bE'(?:[^'\\]|''|\\.)*'", r"'(?:[^']|'')*'", r"\$(\w*)\$.*?\$\1\$", r"--[^\n]*", r"/\*.*?\*/"
)
_INNERMOST = _pattern(r"\([^()]+\)")
_TABLE = _pattern(r"CREATE TABLE (?P<maybe>IF NOT EXISTS )?(?P<table>NAME) ?\((?!.*\bINHERITS\b)")
_OTHERS = _pattern("CREATE (SEQUENCE|TYPE) ")
_INDEX = _pattern(
    "CREATE (?P<unique>UNIQUE )?INDEX (?P<beside>CONCURRENTLY )?(?:IF NOT EXISTS )?NAME ON (?P<table>NAME)"
)
_ALTER = _pattern("ALTER TABLE (?:IF EXISTS )?(?:ONLY )?(NAME) (.*)")
_ADD_COLUMN = _pattern("ADD COLUMN (?:IF NOT EXISTS )?NAME ")
_CONDITION = _pattern(
    r"\b(UNIQUE|CHECK|REFERENCES|PRIMARY KEY|CONSTRAINT|EXCLUDE|GENERATED|ALTER|DROP|RENAME)\b",
    r"^(?!.* DEFAULT (?!NULL\b)).* NOT NULL",
)
_NEITHER = _pattern(
    "COMMENT ON ",
    "INSERT INTO ",
    "UPDATE ",
    "ANALYZE ",
    "ALTER TABLE NAME VALIDATE CONSTRAINT NAME$",
    r"ALTER TABLE NAME ALTER COLUMN NAME SET DEFAULT (?!NULL\b)[^,]*$",
)
_REPEATABLE = _pattern(
    "CREATE (UNIQUE )?INDEX CONCURRENTLY ",
    "(DROP|REINDEX) INDEX CONCURRENTLY IF EXISTS ",
    "UPDATE ",
    "DELETE FROM ",
    "ALTER TABLE NAME VALIDATE CONSTRAINT ",
    "ALTER TYPE NAME ADD VALUE IF NOT EXISTS ",
    "ANALYZE ",
    "VACUUM ",
)


def problems(steps: Sequence[Step]) -> Iterator[str]:
    """Yield what is wrong with scripts, whose statements are for PostgreSQL."""
    revisions = [step.revision for step in steps]
    for step in steps:
        for problem in _problems(step, revisions):
            yield f"{step.revision}: {problem}"


def _problems(step: Step, revisions: Sequence[str]) -> Iterator[str]:
    statements = [" ".join(_QUOTED.sub("''", statement).split()) for statement in step.statements]
    tables = filter(None, map(_TABLE.match, statements))
    created = {match["table"] for match in tables if not match["maybe"]}
    adds = [statement for statement in statements if _adds(statement, created)]
    takes = [each for each in statements if each not in adds and not _NEITHER.match(each)]
    if step.oldest_program is None:
        yield from (
            f"`{statement}` takes away what the release before may use: declare `oldest_program`"
            for statement in takes
        )
    else:
        yield from _problems_of_mark(step.revision, step.oldest_program, revisions)
        yield from (f"`{statement}` adds, in a script that takes away: make it two" for statement in adds)
    for statement in statements:
        yield from _problems_of_statement(statement, step, created)


def _problems_of_mark(revision: str, oldest_program: str, revisions: Sequence[str]) -> Iterator[str]:
    if oldest_program not in revisions:
        yield f"oldest_program = {oldest_program!r} is no revision"
    elif oldest_program >= revision:
        yield "ends the release before it: oldest_program must be a revision before its own"


def _problems_of_statement(statement: str, step: Step, created: set[str]) -> Iterator[str]:
    if ";" in statement:
        yield f"`{statement}` is several statements: give op.execute one at a time"
    index = _INDEX.match(statement)
    if index and not index["beside"] and index["table"] not in created:
        yield f"`{statement}` has writes wait until it is done: postgresql_concurrently=True"
    if " CONCURRENTLY " in statement.upper() and step.transactional:
        yield f"`{statement}` can't run in a transaction: declare `transactional = False`"
    if not step.transactional and not _REPEATABLE.match(statement):
        yield f"`{statement}` can't be repeated after a run that was interrupted: it needs a transaction"


def _adds(statement: str, created: set[str]) -> bool:
    """Whether the release before does not notice what a statement does."""
    if _TABLE.match(statement) or _OTHERS.match(statement):
        return True
    if index := _INDEX.match(statement):
        return not index["unique"] or index["table"] in created
    alter = _ALTER.match(statement)
    if not alter:
        return False
    table, actions = alter.groups()
    return table in created or all(map(_adds_a_column, _without_parentheses(actions).split(", ")))


def _without_parentheses(text: str) -> str:
    """Return text without what is in parentheses, where a comma separates nothing."""
    while (shorter := _INNERMOST.sub("()", text)) != text:
        text = shorter
    return text


def _adds_a_column(action: str) -> bool:
    return bool(_ADD_COLUMN.match(action)) and not _CONDITION.search(action)
