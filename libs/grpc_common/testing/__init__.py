"""For tests of servicers: a real server on a loopback port, as production configures it.

With pytest the fixture `serve` of pytest_plugin.py does the same without a block.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grpc_common.testing.loopback import configure, serve_on_loopback
    from grpc_common.testing.recorded_calls import RecordedCalls

__all__ = ["RecordedCalls", "configure", "serve_on_loopback"]

_HOMES = {"RecordedCalls": "recorded_calls", "configure": "loopback", "serve_on_loopback": "loopback"}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: pytest loads the plugin for tests that have no server, too."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
