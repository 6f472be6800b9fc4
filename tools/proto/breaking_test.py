from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

from tools.proto import breaking

RELEASED = """
syntax = "proto3";
package shop;
service Shop {
  rpc Get(Item) returns (Item) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc List(Item) returns (stream Item);
}
message Item {
  reserved 9;
  reserved "old";
  string id = 1;
  int32 count = 2;
  repeated string tags = 3;
  Color color = 4;
  oneof price { int64 cents = 5; string text = 6; }
  optional string note = 7;
  message Part { string name = 1; }
  Part part = 8;
}
enum Color {
  reserved 9;
  NONE = 0;
  RED = 1;
}
"""


@pytest.fixture
def build(tmp_path: Path):
    """Return the descriptors of a .proto file."""

    def build(source: str, name: str) -> FileDescriptorSet:
        (tmp_path / "shop.proto").write_text(source)
        output = tmp_path / name
        assert (
            protoc.main(["", f"--proto_path={tmp_path}", f"--descriptor_set_out={output}", "shop.proto"]) == 0
        )
        return FileDescriptorSet.FromString(output.read_bytes())

    return build


@pytest.fixture
def lines(build):
    """Return the changes between RELEASED and what becomes of it with some text in another's place."""

    def lines(*replacements: tuple[str, str]) -> list[str]:
        now = RELEASED
        for old, new in replacements:
            assert old in now
            now = now.replace(old, new)
        return list(breaking.changes(build(RELEASED, "released"), build(now, "now")))

    return lines


BREAKING = {
    "field removed": (
        "  string id = 1;\n",
        "",
        'shop.Item.id = 1 is gone without `reserved 1; reserved "id";`',
    ),
    "only its number reserved": (
        "  string id = 1;\n",
        "  reserved 1;\n",
        'shop.Item.id = 1 is gone without `reserved 1; reserved "id";`',
    ),
    "field renamed": ("string id =", "string key =", "shop.Item.id = 1 changed its name from id to key"),
    "name in JSON": (
        "string id = 1;",
        'string id = 1 [json_name = "ID"];',
        "shop.Item.id = 1 changed its name in JSON from id to ID",
    ),
    "type": ("int32 count", "string count", "shop.Item.count = 2 changed its type from int32 to string"),
    "type of a message": (
        "Part part",
        "Item part",
        "shop.Item.part = 8 changed its type from shop.Item.Part to shop.Item",
    ),
    "no longer repeated": (
        "repeated string tags",
        "string tags",
        "shop.Item.tags = 3 changed its type from repeated string to string",
    ),
    "out of a oneof": (
        "int64 cents = 5; string text = 6; }",
        "int64 cents = 5; } string text = 6;",
        "shop.Item.text = 6 changed its oneof from price to none",
    ),
    "reserved number": (
        "  reserved 9;\n  reserved",
        "  string again = 9;\n  reserved",
        "shop.Item.again = 9 takes a name or number that was reserved",
    ),
    "reserved name": (
        '  reserved "old";\n',
        "  string old = 10;\n",
        "shop.Item.old = 10 takes a name or number that was reserved",
    ),
    "nested field": (
        "string name = 1",
        "bytes name = 1",
        "shop.Item.Part.name = 1 changed its type from string to bytes",
    ),
    "value removed": ("  RED = 1;\n", "", 'shop.Color.RED = 1 is gone without `reserved 1; reserved "RED";`'),
    "value renamed": ("RED = 1", "CRIMSON = 1", "shop.Color.RED = 1 is now called CRIMSON"),
    "reserved value": (
        "  reserved 9;\n  NONE = 0;",
        "  NONE = 0;\n  BLUE = 9;",
        "shop.Color.BLUE = 9 takes a name or number that was reserved",
    ),
    "number no longer reserved": (
        "  reserved 9;\n  reserved",
        "  reserved",
        "shop.Item has `reserved 9;` no longer",
    ),
    "name no longer reserved": (
        '  reserved "old";\n',
        "",
        'shop.Item has `reserved "old";` no longer',
    ),
    "value no longer reserved": ("  reserved 9;\n  NONE", "  NONE", "shop.Color has `reserved 9;` no longer"),
    "method removed": ("  rpc List(Item) returns (stream Item);\n", "", "shop.Shop/List is gone"),
    "no longer a stream": (
        "(stream Item)",
        "(Item)",
        "shop.Shop/List changed its response from stream shop.Item to shop.Item",
    ),
    "request": (
        "List(Item)",
        "List(stream Item.Part)",
        "shop.Shop/List changed its request from shop.Item to stream shop.Item.Part",
    ),
    "idempotency": (
        "{ option idempotency_level = NO_SIDE_EFFECTS; }",
        ";",
        "shop.Shop/Get changed its idempotency_level from NO_SIDE_EFFECTS to IDEMPOTENCY_UNKNOWN",
    ),
}


@pytest.mark.parametrize(("old", "new", "line"), BREAKING.values(), ids=BREAKING)
def test_breaking_change_is_named(lines, old, new, line):
    """A change that breaks callers is told with its file, its message and its field."""
    assert lines((old, new)) == [f"shop.proto: {line}"]


PROTO2 = """
syntax = "proto2";
package shop;
message Item {
  required string id = 1;
  optional string text = 2;
  reserved 5 to 9;
}
"""


def test_reserved_in_several_ranges(build):
    """What is reserved may be written in another way."""
    now = build(PROTO2.replace("5 to 9", "9, 5 to 6, 7, 8"), "now")
    assert list(breaking.changes(build(PROTO2, "released"), now)) == []


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "required string id",
            "optional string id",
            ".id = 1 changed its type from required string to string",
        ),
        (
            "optional string text",
            "required string text",
            ".text = 2 changed its type from string to required string",
        ),
        (
            "  reserved",
            "  required string new = 3;\n  reserved",
            ".new = 3 is required, and nobody sends it yet",
        ),
        ("5 to 9", "5 to 8", " has `reserved 5 to 9;` no longer"),
    ],
)
def test_proto2(build, old, new, line):
    """What a reader can't do without is a part of the contract."""
    found = list(breaking.changes(build(PROTO2, "released"), build(PROTO2.replace(old, new), "now")))
    assert found == [f"shop.proto: shop.Item{line}"]


@pytest.mark.parametrize(
    ("old", "gone"),
    [
        ("message Part {", "message shop.Item.Part"),
        ("enum Color {", "enum shop.Color"),
        ("service Shop {", "service shop.Shop"),
    ],
)
def test_what_is_renamed_is_gone(lines, old, gone):
    """Who was built with a name does not find another's."""
    name = old.split()[1]
    renamed = (f"{name} ", f"Other{name} ") if name != "Shop" else (old, "service OtherShop {")
    assert f"shop.proto: {gone} is gone" in lines(renamed)


def test_another_package_breaks_everything(lines):
    """The package is a part of each method's path."""
    assert "shop.proto: service shop.Shop is gone" in lines(("package shop;", "package store;"))


@pytest.mark.parametrize(
    "replacement",
    [
        ("string id = 1;", "string id = 1; string more = 10;"),
        ("  string id = 1;\n", '  reserved 1; reserved "id";\n'),
        ("  RED = 1;\n", '  reserved 1; reserved "RED";\n'),
        ("  reserved 9;\n  reserved", "  reserved 9 to max;\n  reserved"),
        ("RED = 1;", "RED = 1; GREEN = 2;"),
        ("optional string note", "string note"),
        ("  rpc Get(", "  rpc Put(Item) returns (Item);\n  rpc Get("),
        ("enum Color", "message More {}\nenum Color"),
        ("package shop;", 'package shop;\noption go_package = "example.com/shop";'),
    ],
    ids=lambda replacement: replacement[1].strip()[:40],
)
def test_addition_breaks_nothing(lines, replacement):
    """A contract may grow, and lose what it reserves."""
    assert lines(replacement) == []


def test_program(lines, tmp_path, capsys, monkeypatch):
    """It takes the contract of now for the released one; a change after that is its exit code, and said."""
    lines()
    monkeypatch.setenv("BUILD_WORKSPACE_DIRECTORY", str(tmp_path))
    assert breaking.main("--update", "released.txtpb", str(tmp_path / "now")) == 0
    assert breaking.main(str(tmp_path / "released.txtpb"), str(tmp_path / "now")) == 0
    assert capsys.readouterr().out == ""
    lines(("int32 count", "bool count"))
    assert breaking.main(str(tmp_path / "released.txtpb"), str(tmp_path / "now")) == 1
    output = capsys.readouterr().out
    assert "shop.proto: shop.Item.count = 2 changed its type from int32 to bool\n" in output
    assert "released.txtpb" in output
