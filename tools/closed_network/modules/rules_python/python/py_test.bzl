"""py_test: Bazel 7's own rule, under rules_python's load path."""

py_test = native.py_test
