"""What the commands of the user service are made of; ../client.py and ../seed_demo.py put it together."""

import os

# The errors say all that gRPC's own lines on stderr do. It looks once, when it is imported, so that this
# must come before any module of the package.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
