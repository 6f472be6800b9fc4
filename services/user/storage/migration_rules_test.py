"""Every migration leaves the release before it running; and the check of that finds those that do not."""

from pathlib import Path

import pytest

from services.user.storage.migrate import Step, steps
from services.user.testing_migration_rules import problems

HEAD = "import sqlalchemy as sa\nfrom alembic import op\n\n"
FIRST = """
def upgrade():
    op.create_table("users", sa.Column("id", sa.Uuid(), primary_key=True), sa.Column("name", sa.Text()))
"""


def of_scripts(folder: Path, *scripts: str) -> list[Step]:
    """Return the steps of a first script and others."""
    (folder / "versions").mkdir()
    before = "None"
    for number, script in enumerate([FIRST, *scripts], 1):
        revision = f"'{number:04}'"
        about = f"revision = {revision}\ndown_revision = {before}\n"
        (folder / f"versions/{number:04}.py").write_text(HEAD + about + script)
        before = revision
    return steps("postgresql", None, folder=folder)


def upgrade(*lines: str) -> str:
    """Return the source of a script's function."""
    return "\n    ".join(["def upgrade():", *lines])


def test_migrations_of_this_repository():
    """The scripts that there are keep the rules."""
    assert list(problems(steps("postgresql", None))) == []


@pytest.mark.parametrize(
    "line",
    [
        "pass",
        'op.add_column("users", sa.Column("nickname", sa.Text()))',
        'op.add_column("users", sa.Column("kind", sa.Text(), nullable=False, server_default="person"))',
        'op.add_column("users", sa.Column("text", sa.Text(), server_default="DROP; UNIQUE -- it"))',
        'op.execute("ALTER TABLE users ADD COLUMN a integer, ADD COLUMN b integer")',
        'op.execute("ALTER TABLE users ADD COLUMN a numeric(9, 2) DEFAULT round(1.5, 1) NOT NULL")',
        'op.create_table("others", sa.Column("id", sa.Text(), sa.ForeignKey("users.id"), unique=True))',
        'op.execute("create table others (id text unique)")',
        "op.execute(\"alter table users add column kind text not null default 'person'\")",
        'op.execute("UPDATE users SET name = id::text")',
        "op.execute(\"COMMENT ON TABLE users IS 'DROP TABLE users'\")",
        'op.alter_column("users", "name", server_default="nobody")',
    ],
)
def test_what_adds(tmp_path, line):
    """What the release before does not notice needs no declaration."""
    assert list(problems(of_scripts(tmp_path, upgrade(line)))) == []


def test_what_adds_to_what_it_has_made(tmp_path):
    """A table of the script's own may get anything."""
    script = upgrade(
        'op.create_table("others", sa.Column("id", sa.Text()))',
        'op.create_index("others_id", "others", ["id"], unique=True)',
        'op.create_check_constraint("is_short", "others", "length(id) < 9")',
    )
    assert list(problems(of_scripts(tmp_path, script))) == []


@pytest.mark.parametrize(
    "line",
    [
        'op.drop_table("users")',
        'op.drop_column("users", "name")',
        'op.rename_table("users", "people")',
        'op.alter_column("users", "name", new_column_name="title")',
        'op.alter_column("users", "name", nullable=False)',
        'op.alter_column("users", "name", nullable=True)',
        'op.alter_column("users", "name", type_=sa.LargeBinary())',
        'op.alter_column("users", "name", server_default=None)',
        'op.add_column("users", sa.Column("kind", sa.Text(), nullable=False))',
        "op.execute(\"ALTER TABLE users ADD COLUMN kind text CHECK (kind <> '')\")",
        'op.execute("ALTER TABLE users ADD COLUMN other uuid REFERENCES users")',
        'op.execute("ALTER TABLE users ADD COLUMN a integer, DROP COLUMN name")',
        'op.execute("ALTER TABLE users ADD COLUMN a integer, ALTER COLUMN name SET NOT NULL")',
        'op.create_unique_constraint("one_name", "users", ["name"])',
        'op.create_check_constraint("is_short", "users", "length(name) < 9")',
        'op.create_foreign_key("of", "users", "users", ["id"], ["id"])',
        'op.execute("TRUNCATE users")',
        'op.execute("DELETE FROM users")',
        'op.execute("drop table users")',
        'op.execute("alter table users add column kind text not null")',
        "op.execute(\"alter table users add column kind text check (kind <> '')\")",
        'op.execute("/* ADD COLUMN */ DROP TABLE users")',
        'op.execute("DO $$ BEGIN DROP TABLE users; END $$")',
        "op.execute(\"CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS ''\")",
        "op.execute(\"ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'\")",
        'op.execute("REVOKE SELECT ON users FROM public")',
        'op.execute("ALTER TABLE users ADD COLUMN a integer, ENABLE ROW LEVEL SECURITY")',
        'op.execute("ALTER TABLE users ADD COLUMN a numeric(9, 2), OWNER TO other")',
        'op.execute("ALTER TABLE users ADD COLUMN a integer NOT NULL DEFAULT NULL")',
        'op.execute("ALTER TABLE users ALTER COLUMN name SET DEFAULT NULL")',
        'op.execute("CREATE TABLE part PARTITION OF users FOR VALUES IN (1)")',
        'op.execute("CREATE TABLE child () INHERITS (users)")',
    ],
)
def test_what_takes_away(tmp_path, line):
    """What the release before may notice must be declared, and is accepted then."""
    found = list(problems(of_scripts(tmp_path, upgrade(line))))
    assert any(
        "takes away what the release before may use: declare `oldest_program`" in each for each in found
    )
    (tmp_path / "declared").mkdir()
    declared = of_scripts(tmp_path / "declared", "oldest_program = '0001'\n" + upgrade(line))
    assert [each for each in problems(declared) if "several statements" not in each] == []


def test_table_that_may_be_there_is_not_of_the_script(tmp_path):
    """IF NOT EXISTS makes no table the script's own, which might get anything."""
    lines = (
        'op.execute("CREATE TABLE IF NOT EXISTS users (id uuid)")',
        'op.execute("ALTER TABLE users DROP COLUMN name")',
    )
    (found,) = problems(of_scripts(tmp_path, upgrade(*lines)))
    assert "declare `oldest_program`" in found


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_percent_stays_one(tmp_path, dialect):
    """What a script says of % comes to the database as it is written, in text and in SQL."""
    column = 'op.add_column("users", sa.Column("part", sa.Text(), server_default="100%"))'
    update = "op.execute(\"UPDATE users SET name = '' WHERE length(name) % 2 = 1\")"
    of_scripts(tmp_path, upgrade(column, update))
    (step,) = steps(dialect, "0001", folder=tmp_path)
    assert step.statements == (
        "ALTER TABLE users ADD COLUMN part TEXT DEFAULT '100%'",
        "UPDATE users SET name = '' WHERE length(name) % 2 = 1",
    )


def test_unique_index_takes_away(tmp_path):
    """An index that refuses what was allowed is a contraction, beside the writes too."""
    line = 'op.create_index("one_name", "users", ["name"], unique=True, postgresql_concurrently=True)'
    (found,) = problems(of_scripts(tmp_path, "transactional = False\n" + upgrade(line)))
    assert "declare `oldest_program`" in found


def test_one_script_does_not_do_both(tmp_path):
    """To add and to take away are two releases, and so two scripts."""
    lines = ('op.add_column("users", sa.Column("title", sa.Text()))', 'op.drop_column("users", "name")')
    (found,) = problems(of_scripts(tmp_path, "oldest_program = '0001'\n" + upgrade(*lines)))
    assert "adds, in a script that takes away: make it two" in found


@pytest.mark.parametrize(
    ("oldest", "problem"), [("0002", "ends the release before it"), ("001", "is no revision")]
)
def test_contraction_leaves_the_release_before_running(tmp_path, oldest, problem):
    """A script that only programs of its own schema work with leaves no way to roll it out."""
    script = f"oldest_program = '{oldest}'\n" + upgrade('op.drop_column("users", "name")')
    (found,) = problems(of_scripts(tmp_path, script))
    assert problem in found


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        (upgrade('op.create_index("names", "users", ["name"])'), "postgresql_concurrently=True"),
        (
            upgrade('op.create_index("names", "users", ["name"], postgresql_concurrently=True)'),
            "declare `transactional = False`",
        ),
        (
            "transactional = False\n" + upgrade('op.add_column("users", sa.Column("title", sa.Text()))'),
            "can't be repeated",
        ),
        (
            upgrade("op.execute(\"UPDATE users SET name = ''; UPDATE users SET name = NULL\")"),
            "give op.execute one at a time",
        ),
        (
            upgrade("op.execute(\"COMMENT ON TABLE users IS $$'$$; DROP TABLE users; --'\")"),
            "give op.execute one at a time",
        ),
        (
            upgrade(r"""op.execute("COMMENT ON TABLE users IS E'\\''; DROP TABLE users; --'")"""),
            "give op.execute one at a time",
        ),
    ],
)
def test_how_a_script_runs(tmp_path, script, problem):
    """An index does not stop the writes, and what runs outside a transaction may be repeated."""
    (found,) = problems(of_scripts(tmp_path, script))
    assert problem in found


def test_index_beside_the_writes(tmp_path):
    """That is how an index of a table that is in use is made."""
    line = 'op.create_index("names", "users", ["name"], postgresql_concurrently=True)'
    assert list(problems(of_scripts(tmp_path, "transactional = False\n" + upgrade(line)))) == []
