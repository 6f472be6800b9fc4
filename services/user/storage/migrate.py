"""Makes the SQL that brings a schema up to date, from the scripts in migrations/versions.

Alembic's offline mode writes it, and the database's own driver runs it. So there is one set
of scripts for both databases, and no second driver of SQLAlchemy's for each.
"""

import io
import logging
from pathlib import Path

# Before the import, which already logs: what it does here is text, not yet a migration.
logging.getLogger("alembic").setLevel(logging.WARNING)

from alembic import command  # noqa: E402
from alembic.config import Config  # noqa: E402

from services.user.storage import schema  # noqa: E402

_MIGRATIONS = Path(__file__).with_name("migrations")


def upgrade_script(dialect: str, found: str | None) -> str:
    """Return the SQL that leads from the version `found` (None: from nothing) to schema.VERSION.

    It is for one transaction, which whoever runs it has around it.
    """
    script = io.StringIO()
    config = Config(output_buffer=script, attributes={"dialect": dialect})
    config.set_main_option("script_location", str(_MIGRATIONS))
    command.upgrade(config, f"{found}:{schema.VERSION}" if found else schema.VERSION, sql=True)
    return script.getvalue()
