import time
from pathlib import Path

import pytest

from k8s.checks.reading import UnreadableError, read_objects

OBJECT = "{kind: Service, spec: {ports: [{port: 80, name: yes}]}}"


def read(tmp_path, text):
    """Return what is read of a file with this text."""
    file = tmp_path / "manifests.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_objects(file)


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        ("kind: A\n---\n# nothing\n---\nkind: B\n", [{"kind": "A"}, {"kind": "B"}]),
        ("\ufeffkind: A", [{"kind": "A"}]),
        ('{\n\t"kind": "A",\n\t"n": 1\n}', [{"kind": "A", "n": 1}]),
        ("{kind: A}", [{"kind": "A"}]),
        (
            "{kind: List, items: [{kind: A}, {kind: BList, items: [{kind: B}]}]}",
            [{"kind": "A"}, {"kind": "B"}],
        ),
        # As Kubernetes reads it.
        ("kind: A\ndata: {2026-01-01: 2026-01-01, 8080: on, ~: 1}", None),
        ("kind: A\nspec: null\nlist: [null]", [{"kind": "A", "list": [None]}]),
    ],
)
def test_files(tmp_path, text, objects):
    """Documents, JSON and lists are read as Kubernetes reads them."""
    expected = [{"kind": "A", "data": {"2026-01-01": "2026-01-01", "8080": True, "~": 1}}]
    assert read(tmp_path, text) == (expected if objects is None else objects)


BOMB = "a: &a [1, 2]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no object"),
        ("# nothing\n---\n...\n", "has no object"),
        ("{kind: List, items: []}", "List without an item"),
        ("{kind: List, items: 5}", "List without an item"),
        ("{kind: List, items: [5]}", "document without kind"),
        ("{kind: List, items: [null]}", "document without kind"),
        ("a: [", "not YAML: did not find expected node content, in line 2"),
        ("text", "document without kind"),
        ("5", "document without kind"),
        ("[1, 2]", "document without kind"),
        ("a: 1", "document without kind"),
        ("kind: [A]", "document without kind"),
        ("kind: A\nkind: B", "the key 'kind' is there twice"),
        ('{"kind": "A", "spec": {"a": 1, "a": 2}}', "the key 'a' is there twice"),
        ("kind: A\n? [a]\n: b", "key that is no string"),
        ("kind: A\nb: !!binary aGVsbG8=", "not YAML: could not determine a constructor"),
        ("kind: A\nb: !!python/object:os.system {}", "not YAML: could not determine a constructor"),
        ("kind: A\nb: .nan", "the number nan"),
        ('{"kind": "A", "b": 1e999}', "the number inf"),
        ('{"kind": "A", "b": "\\ud800"}', "half of a character"),
        ("kind: A\nb: &a {c: *a}", "has an alias"),
        (BOMB, "has an alias"),
        ("kind: A\nb: " + "[" * 150 + "]" * 150, "nested deeper than 100"),
        ("kind: A\nb: " + "[" * 5000 + "]" * 5000, "exceeded maximum nesting depth, in line 2"),
        ('{"kind": "A", "b": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested deeper than"),
        ("kind: A\nb: " + "9" * 5000, "a value that is no int, in line 2, column 4"),
        ('{"kind": "A", "b": ' + "9" * 5000 + "}", "has a number of 5000 digits"),
        ("kind: A\nb: 0x_", "a value that is no int, in line 2"),
        ("kind: A\nb: !!bool a", "a value that is no bool"),
        ("kind: A\nb: !!int ''", "a value that is no int"),
        ("kind: A\nb: !!float a", "a value that is no float"),
        ("kind: A\nb: !!map a", "no"),
        (b"\x7fELF\x02\x01\x01\x00\xff", "byte 8 is not UTF-8"),
        (b"\x00\x01\x02", "not YAML"),
    ],
)
def test_what_is_not_read(tmp_path, text, message):
    """What is no manifest, or could be read in two ways, is refused with a reason."""
    with pytest.raises(UnreadableError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        "{password: hunter2: a",
        "{password: !hunter2 a}",
        "{password: !hunter2}",
        "{password: !hunter2!a}",
        "{password: !'hunter2}",
        "{password: *hunter2 }",
        "{password: !!int hunter2}",
        "{password: !!float hunter2}",
        "{password: !!bool hunter2}",
        '{password: "hunter2\\ud800"}',
        '{password: "\\hunter2"}',
        '{password: "hunter2',
    ],
)
def test_no_line_is_quoted(tmp_path, text):
    """A mistake in or beside a password does not show it."""
    with pytest.raises(UnreadableError) as caught:
        read(tmp_path, f"kind: Secret\nstringData: {text}")
    assert "line 2" in str(caught.value) or "half of a character" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_deep_files_are_refused_at_once(tmp_path):
    """They cost no more CPU time than others of their size; a tenth of a second is fifty times that."""
    before = time.process_time()
    with pytest.raises(UnreadableError, match="nesting"):
        read(tmp_path, 4000 * "[")
    assert time.process_time() - before < 0.1


def test_files_without_an_end():
    """What never ends is no manifest."""
    with pytest.raises(UnreadableError, match="is larger than 100000000 bytes"):
        read_objects(Path("/dev/zero"))
