"""Commands that run the command behind them in another way."""

import os

# In a user namespace root can be nobody without a second real user, which sandboxes don't have; the files
# stay root's.
AS_NOBODY = [] if os.geteuid() else ["unshare", "--user", "--map-user=65534", "--map-group=65534"]
"""Runs a program that does not want to be root, as PostgreSQL and PgBouncer."""

DIES_WITH_US = ["setpriv", "--pdeathsig", "KILL"]
"""Runs a program that ends with the thread that has started it, however that ends."""
