"""What a server has been called with."""

from grpc_common.core.calls import Call


class RecordedCalls:
    """An observer that keeps the calls of a server or a channel: `observers=[recorded]`."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        """Every call from its start, the first one first; its `code` is None until it has ended."""

    def started(self, call: Call) -> None:
        """Keep a call that begins."""
        self.calls.append(call)

    def ended(self, call: Call) -> None:
        """Do nothing: the call is kept, and has its code."""
