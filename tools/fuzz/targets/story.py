"""Stories of the lab."""

from grpc_common.config.document import ConfigError
from tools.fuzz.input_file import input_file
from tools.fuzz.properties import check_shown
from tools.lab.story import read_story


def fuzz(data: bytes) -> None:
    """A file is a story that ends after its events, which are in order, or an error of short lines."""
    try:
        story = read_story(input_file(data))
    except ConfigError as error:
        check_shown(str(error), 101 * 1000)
        return
    times = [0, *(event.at for event in story.events), story.until]
    assert times == sorted(times)
    assert times[-1] > times[-2]
