"""py_binary: Bazel 7's own rule, under rules_python's load path."""

py_binary = native.py_binary
