"""Bazel 7's global PyInfo under another name, since a file can't re-export a global as itself."""

BuiltinPyInfo = PyInfo
