"""The user service, whose server stops at SIGTERM, as many do: a mutation, which loses calls."""

from typing import Any

import grpc_common
from services.user.server import main


async def _stop(server: Any) -> None:
    await server._server.stop(None)  # noqa: SLF001 (what is left of it)


grpc_common.Server._drain = _stop  # type: ignore[assignment]  # noqa: SLF001 (the mutation)

if __name__ == "__main__":
    main()
