"""oci_image, oci_image_index, oci_load and oci_push, as rules_oci 2.3 names them.

What the real macros take as a list, a dictionary or a file, these take as a list or a
dictionary only, except `labels`, `remote_tags` and `repo_tags`.
"""

load("//oci/private:image.bzl", "oci_image_index_rule", "oci_image_rule")
load("//oci/private:load.bzl", "oci_load_rule")
load("//oci/private:push.bzl", "oci_push_rule")

def _with_digest(rule, name, **kwargs):
    rule(name = name, **kwargs)
    native.filegroup(
        name = name + ".digest",
        srcs = [name],
        output_group = "digest",
        tags = kwargs.get("tags"),
        testonly = kwargs.get("testonly"),
        visibility = kwargs.get("visibility"),
    )

def oci_image(name, labels = None, **kwargs):
    """Makes an image: the folder `name`, and the target `name.digest` with its digest."""
    _with_digest(oci_image_rule, name, **_value_or_file("labels", labels or {}, kwargs))

def oci_image_index(name, **kwargs):
    """Makes an index of images: the folder `name`, and the target `name.digest`."""
    _with_digest(oci_image_index_rule, name, **kwargs)

def oci_load(name, repo_tags, **kwargs):
    """Makes `bazel run :name`, which brings an image to podman or docker."""
    oci_load_rule(name = name, **_value_or_file("repo_tags", repo_tags, kwargs))

def oci_push(name, remote_tags = None, **kwargs):
    """Makes `bazel run :name`, which pushes an image by its digest and then tags it."""
    oci_push_rule(name = name, **_value_or_file("remote_tags", remote_tags or [], kwargs))

def _value_or_file(attribute, value, kwargs):
    if type(value) in ["dict", "list"]:
        return {attribute: value} | kwargs
    return {attribute + "_file": value} | kwargs
