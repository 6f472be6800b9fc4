"""The keys that make CreateUser safe to repeat."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the table. Users are never deleted and keys soon, so there is no foreign key."""
    op.create_table(
        "idempotency_keys",
        sa.Column("key", sa.Text(collation="C").with_variant(sa.Text(), "sqlite"), primary_key=True),
        sa.Column("request", sa.LargeBinary(), nullable=False),
        sa.Column("user_id", sa.Uuid().with_variant(sa.LargeBinary(), "sqlite"), nullable=False),
        # Seconds since 1970 in SQLite, which has no type for it.
        sa.Column(
            "created_at", sa.DateTime(timezone=True).with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index("idempotency_keys_created_at", "idempotency_keys", ["created_at"])
