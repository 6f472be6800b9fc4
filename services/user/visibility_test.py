import ast
from pathlib import Path

BUILD = ast.parse(Path("services/user/BUILD.bazel").read_text())  # Starlark is a part of Python's syntax
EVERYBODY = {
    "//visibility:public",
    "//:__subpackages__",
    "//services:__subpackages__",
    "//examples:__subpackages__",
}


def targets(rule: str) -> dict[str, dict[str, object]]:
    """Return the attributes of a rule's targets that are written out, by name."""
    calls = [
        node.value for node in BUILD.body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ]
    found = [
        {
            keyword.arg: ast.literal_eval(keyword.value)
            for keyword in call.keywords
            if is_literal(keyword.value)
        }
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == rule
    ]
    return {attributes["name"]: attributes for attributes in found}


def is_literal(node: ast.expr) -> bool:
    """Tell whether an attribute has no expression in it."""
    return not any(isinstance(part, ast.Call | ast.BinOp | ast.Name) for part in ast.walk(node))


def test_no_other_service_can_depend_on_the_service():
    """Another service may have the contract; libraries and programs are for those that they name."""
    for rule in ("py_library", "py_binary"):
        assert targets(rule)
        for name, attributes in targets(rule).items():
            if not attributes.get("testonly"):
                assert EVERYBODY.isdisjoint(attributes.get("visibility", [])), name


def test_storage_is_private():
    """Who may read the users past the service: its own tests, and the benchmark of the storage."""
    assert targets("py_library")["user"]["visibility"] == ["//tools/bench:__pkg__"]
    assert "visibility" not in targets("py_library")["domain"]


def test_nothing_is_visible_by_default():
    """A target without visibility is private, as no default says otherwise."""
    names = {node.func.id for node in ast.walk(BUILD) if is_call(node)}
    assert "py_library" in names
    assert "package" not in names


def is_call(node: ast.AST) -> bool:
    """Tell whether a rule or a function is called by its name."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
