"""What of a contract breaks those who were built with an earlier one, on the wire or in JSON.

    python breaking.py RELEASED.txtpb NOW.bin             names each change, and exits with 1 if there are any
    python breaking.py --update RELEASED.txtpb NOW.bin    takes the contract of now for the released one

RELEASED.txtpb is a FileDescriptorSet as text; NOW.bin is what a proto_library builds.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    MethodOptions,
)


@dataclass(frozen=True)
class Declared:
    """A message, an enum or a service, and its file."""

    file: str
    kind: str
    value: Any


def declarations(files: FileDescriptorSet) -> dict[str, Declared]:
    """Return everything that has a name of its own, by this."""
    found: dict[str, Declared] = {}
    for file in files.file:
        for name, kind, value in in_scope(file.package, file.message_type, file.enum_type):
            found[name] = Declared(file.name, kind, value)
        for service in file.service:
            found[f"{file.package}.{service.name}".lstrip(".")] = Declared(file.name, "service", service)
    return found


def in_scope(scope: str, messages: Any, enums: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield messages and enums with their full names, nested ones too."""
    for enum in enums:
        yield f"{scope}.{enum.name}".lstrip("."), "enum", enum
    for message in messages:
        name = f"{scope}.{message.name}".lstrip(".")
        yield name, "message", message
        yield from in_scope(name, message.nested_type, message.enum_type)


def changes(released: FileDescriptorSet, now: FileDescriptorSet) -> Iterator[str]:
    """Yield a line for each change that breaks: the file, what in it, and how it differs."""
    current = declarations(now)
    for name, before in declarations(released).items():
        after = current.get(name)
        if after is None or after.kind != before.kind:
            yield f"{before.file}: {before.kind} {name} is gone"
            continue
        for line in COMPARISONS[before.kind](before.value, after.value):
            yield f"{after.file}: {name}{line}"


def of_messages(before: DescriptorProto, after: DescriptorProto) -> Iterator[str]:
    """Yield what became of the fields of a message."""
    by_number = {field.number: field for field in after.field}
    for field in before.field:
        if field.number not in by_number:
            yield from removed(field, after, 0)
        else:
            yield from of_fields(before, field, after, by_number[field.number])
    for field in after.field:
        if was_reserved(field, before, 0):
            yield f".{field.name} = {field.number} takes a name or number that was reserved"
        elif is_required(field) and field.number not in {each.number for each in before.field}:
            yield f".{field.name} = {field.number} is required, and nobody sends it yet"
    yield from reservations(before, after, 0)


def of_enums(before: EnumDescriptorProto, after: EnumDescriptorProto) -> Iterator[str]:
    """Yield what became of the values of an enum."""
    names: dict[int, set[str]] = {}
    for value in after.value:
        names.setdefault(value.number, set()).add(value.name)
    for value in before.value:
        if value.number not in names:
            yield from removed(value, after, 1)
        elif value.name not in names[value.number]:
            yield f".{value.name} = {value.number} is now called {', '.join(sorted(names[value.number]))}"
    for value in after.value:
        if was_reserved(value, before, 1):
            yield f".{value.name} = {value.number} takes a name or number that was reserved"
    yield from reservations(before, after, 1)


def of_services(before: Any, after: Any) -> Iterator[str]:
    """Yield what became of the methods of a service."""
    methods = {method.name: method for method in after.method}
    for method in before.method:
        if method.name not in methods:
            yield f"/{method.name} is gone"
        else:
            yield from of_methods(method, methods[method.name])


COMPARISONS = {"message": of_messages, "enum": of_enums, "service": of_services}


def is_reserved(number: int, scope: Any, inclusive: int) -> bool:
    """Tell whether a number is reserved; ranges end after their last number in messages, with it in enums."""
    return any(span.start <= number < span.end + inclusive for span in scope.reserved_range)


def reservations(before: Any, after: Any, inclusive: int) -> Iterator[str]:
    """Yield what is no longer reserved, for a later change to take; what took it is told above."""
    taken = [*getattr(after, "field", ()), *getattr(after, "value", ())]
    for span in before.reserved_range:
        ends = [each.end + inclusive for each in after.reserved_range]
        firsts = [span.start, *(end for end in ends if span.start < end < span.end + inclusive)]
        kept = all(is_reserved(first, after, inclusive) for first in firsts)
        if not kept and not any(span.start <= each.number < span.end + inclusive for each in taken):
            yield f" has `reserved {numbers(span, inclusive)};` no longer"
    for name in before.reserved_name:
        if name not in after.reserved_name and name not in [each.name for each in taken]:
            yield f' has `reserved "{name}";` no longer'


def numbers(span: Any, inclusive: int) -> str:
    """Return a range as it is written."""
    last = span.end - 1 + inclusive
    return f"{span.start} to {last}" if last > span.start else str(span.start)


def is_required(field: FieldDescriptorProto) -> bool:
    """Tell whether a message without the field can't be read."""
    return field.label == FieldDescriptorProto.LABEL_REQUIRED


def was_reserved(item: Any, before: Any, inclusive: int) -> bool:
    """Tell whether a field or value takes a name or a number that must not be taken."""
    return item.name in before.reserved_name or is_reserved(item.number, before, inclusive)


def removed(item: Any, after: Any, inclusive: int) -> Iterator[str]:
    """Yield the removal of a field or value, unless nothing can take its name or its number again."""
    if not is_reserved(item.number, after, inclusive) or item.name not in after.reserved_name:
        name, number = item.name, item.number
        yield f'.{name} = {number} is gone without `reserved {number}; reserved "{name}";`'


def of_fields(
    was_in: DescriptorProto, before: FieldDescriptorProto, is_in: DescriptorProto, after: FieldDescriptorProto
) -> Iterator[str]:
    """Yield how a field with the same number differs."""
    where = f".{before.name} = {before.number}"
    for what, old, new in (
        ("name", before.name, after.name),
        ("name in JSON", before.json_name, after.json_name),
        ("type", type_of(before), type_of(after)),
        ("oneof", oneof(was_in, before), oneof(is_in, after)),
    ):
        if old != new and not (what == "name in JSON" and before.name != after.name):
            yield f"{where} changed its {what} from {old} to {new}"


def type_of(field: FieldDescriptorProto) -> str:
    """Return a field's type as it is written, without what says whether its absence shows."""
    repeated = field.label == FieldDescriptorProto.LABEL_REPEATED
    label = "repeated " if repeated else "required " if is_required(field) else ""
    name = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    return label + (field.type_name.removeprefix(".") or name)


def oneof(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    """Return the oneof that a field is in; `optional` makes one of its own, which does not count."""
    if not field.HasField("oneof_index") or field.proto3_optional:
        return "none"
    return message.oneof_decl[field.oneof_index].name


def of_methods(before: MethodDescriptorProto, after: MethodDescriptorProto) -> Iterator[str]:
    """Yield how a method differs."""
    for what, old, new in (
        (
            "request",
            call(before.input_type, stream=before.client_streaming),
            call(after.input_type, stream=after.client_streaming),
        ),
        (
            "response",
            call(before.output_type, stream=before.server_streaming),
            call(after.output_type, stream=after.server_streaming),
        ),
        ("idempotency_level", level(before), level(after)),
    ):
        if old != new:
            yield f"/{before.name} changed its {what} from {old} to {new}"


def call(message: str, *, stream: bool) -> str:
    """Return one side of a method as it is written."""
    return ("stream " if stream else "") + message.removeprefix(".")


def level(method: MethodDescriptorProto) -> str:
    """Return whether clients may repeat a call by themselves."""
    return MethodOptions.IdempotencyLevel.Name(method.options.idempotency_level)


def main(*arguments: str) -> int:
    """Compare, or update, as the module's docstring has it."""
    released, built = (Path(argument) for argument in arguments[-2:])
    now = FileDescriptorSet.FromString(built.read_bytes())
    if arguments[0] == "--update":
        (Path(os.environ["BUILD_WORKSPACE_DIRECTORY"]) / released).write_text(
            text_format.MessageToString(now)
        )
        return 0
    lines = list(changes(text_format.Parse(released.read_text(), FileDescriptorSet()), now))
    for line in lines:
        print(line)
    if lines:
        print(
            f"breaks who was built with {released}: reserve what is gone, and add beside what changes. Where"
            " nobody was, run this target with .update at its end to take the contract as it is now"
        )
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
