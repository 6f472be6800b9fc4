"""Bounds the memory that the messages of all calls take together.

C-core bounds each message, and decompresses it: a few kilobytes of gzip are ten megabytes here, in every
call that a client has open. Answers that nobody reads are kept as well.
"""

from grpc_common.server.admission import pushback

SMALL = 2**16
"""Bytes of a message up to which it is not counted, since max_concurrent_calls bounds these well enough."""


class MessageMemory:
    """Counts the bytes of large messages.

    Args:
        limit: bytes that they may take together.

    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.used = 0

    def replace(self, held: int, message: bytes) -> int:
        """Count `message` in the place of `held` bytes, and return how many are counted for it.

        Raises:
            StatusError: RESOURCE_EXHAUSTED, since there is no room; nothing is counted for the call then.
                A message finds room if it is the only one, however large it is.

        """
        self.used -= held
        size = len(message)
        if size <= SMALL:
            return 0
        if self.used and self.used + size > self._limit:
            raise pushback(f"the server has no memory for a message of {size} bytes now")
        self.used += size
        return size
