"""The users, as they were before there were migrations."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the table, unless a SQLite file has it from the time before migrations."""
    op.create_table(
        "users",
        # 16 bytes in both, which sort alike: by the time in a UUIDv7.
        sa.Column("id", sa.Uuid().with_variant(sa.LargeBinary(), "sqlite"), primary_key=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        # Compared by bytes: another order would change with the operating system's, and break the index.
        sa.Column(
            "email_key", sa.Text(collation="C").with_variant(sa.Text(), "sqlite"), nullable=False, unique=True
        ),
        sqlite_strict=True,
        sqlite_with_rowid=False,
        if_not_exists=op.get_context().dialect.name == "sqlite",
    )
