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
    ("content", "told"),
    [(b"", ": pods: Field required"), (b"pods: \xe9", ":1: not YAML: not UTF-8, because of the byte 0xE9")],
)
def test_what_is_no_story(tmp_path, content, told):
    """An empty file lacks its keys; one that is no text is told where."""
    file = tmp_path / "story.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_story(file)
    assert f"{file}{told}" in str(caught.value)


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
        ("rate: 30", "rate: 0.5", ":2: rate: Input should be greater than or equal to 1"),
        ("rate: 30", "rate: .inf", ":2: rate: Input should be a finite number"),
        ("pods: 3", "pods: 7", ":1: pods: Input should be less than or equal to 6"),
        ("pods: 6", "pods: 7", ":5: events.0.pods: Input should be less than or equal to 6"),
        ("pods: 6", "pods: 3", ": events.0: there are 3 pods already; choose another number"),
        ("age: 3s", "age: 900ms", ":3: max_connection_age: Input should be greater than or equal to 1"),
        ("at: 1s", "at: -1s", ':5: events.0.at: write a duration with its unit: "500ms", "15s"'),
        ("at: 1s", "at: 1", ':5: events.0.at: write a duration with its unit: "500ms", "15s"'),
        ("until: 4s", "until: 100000h", ":7: until: Input should be less than or equal to 2147483.647"),
        ("pods: 3", "pods: 3\npods: 4", ":2: pods: is there twice"),
        ("pods: 3", "podz: 3\npods: 3", ":1: podz: Extra inputs are not permitted"),
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
