"""py_library: Bazel 7's own rule, under rules_python's load path."""

py_library = native.py_library
