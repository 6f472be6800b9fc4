"""PyInfo: Bazel 7's own provider, under rules_python's load path."""

load("//python/private:builtin.bzl", "BuiltinPyInfo")

PyInfo = BuiltinPyInfo
