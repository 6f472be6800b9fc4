"""Stories of the lab."""

import os
from pathlib import Path

from grpc_common.config.document import ConfigError
from tools.fuzz.properties import check_shown
from tools.lab.story import read_story

_file = os.memfd_create("story.yaml")
_PATH = Path(f"/proc/self/fd/{_file}")


def fuzz(data: bytes) -> None:
    """A file is a story that ends after its events, which are in order, or an error of short lines."""
    os.ftruncate(_file, 0)
    os.pwrite(_file, data, 0)
    try:
        story = read_story(_PATH)
    except ConfigError as error:
        check_shown(str(error), 101 * 1000)
        return
    times = [0, *(event.at for event in story.events), story.until]
    assert times == sorted(times)
    assert times[-1] > times[-2]
