"""How a file that is read again when it changes is seen to have changed."""

import os


def file_version(status: os.stat_result) -> tuple[int, int, int]:
    """Return what differs once a file has changed or another one is in its place, from its os.stat().

    The change time, unlike that of modification, tells of a new mode too and is not copied with a file.
    """
    return status.st_ino, status.st_size, status.st_ctime_ns
