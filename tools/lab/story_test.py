from pathlib import Path

import pytest

from grpc_common.config.document import ConfigError
from tools.lab.story import Scale, read_story

STORIES = sorted((Path(__file__).parent / "stories").glob("*.yaml"))

STORY = """\
pods: 3
rate: 30
max_connection_age: 3s
events:
  - {at: 1s, do: scale, pods: 6}
  - {at: 2s, do: slow, delay: 25ms, for: 1s}
until: 4s
"""


@pytest.mark.parametrize("file", STORIES, ids=lambda file: file.stem)
def test_our_stories_tell_everything(file):
    """Each of our stories has every kind of event, and scales up and down."""
    story = read_story(file)
    kinds = [event.do for event in story.events]
    assert set(kinds) == {"scale", "slow", "not-serving", "roll", "kill", "restart-database"}
    assert [event.pods for event in story.events if isinstance(event, Scale)] == [6, 2]


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("pods: 6", "pods: 0", ":5: events.0.pods: Input should be greater than 0"),
        (", pods: 6", "", ":5: events.0.pods: Field required"),
        ("do: scale", "do: scael", ":5: events.0: Input tag 'scael'"),
        ("25ms", "25 parsecs", ":6: events.1.delay: "),
        ("for: 1s", "until: 1s", ":6: events.1.until: Extra inputs"),
        ("at: 2s", "at: 0s", ": the events are not in the order of their times"),
        ("until: 4s", "until: 2s", ": the story ends before its last event"),
        ("rate: 30", "rate: 0", ":2: rate: Input should be greater than 0"),
        ("until: 4s", "", ": until: Field required"),
        ("pods: 3", "pods: [", ":3: not YAML"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path, before, after, told):
    """What is wrong with a story is told with its file, line and place."""
    file = tmp_path / "story.yaml"
    file.write_text(STORY)
    read_story(file)
    file.write_text(STORY.replace(before, after))
    with pytest.raises(ConfigError) as caught:
        read_story(file)
    assert f"{file}{told}" in str(caught.value)
