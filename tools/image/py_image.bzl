"""py_image: a py_binary as an image, with all that is done with one."""

load("@rules_oci//oci:defs.bzl", "oci_image", "oci_load", "oci_push")
load("//tools/image:image_labels.bzl", "image_labels")
load("//tools/image:image_sbom.bzl", "image_sbom")
load("//tools/image:py_image_layers.bzl", "PY_ENTRYPOINT", "py_image_layers")

# `nonroot` of distroless images, as a number since Kubernetes does not look names up.
_USER = "65532:65532"

def py_image(name, binary, base, repository, labels, requirements_lock, exposed_ports = [], visibility = None):
    """Makes an image and the targets NAME_load, NAME_push and NAME_sbom.

    Args:
        name: the target's name, an OCI layout.
        binary: a py_binary that is called as its main file.
        base: the image below it, with glibc and certificates.
        repository: what the image is called on this machine; NAME_push has `--repository`.
        labels: those of the OCI specification, without version and revision.
        requirements_lock: the lock that pins the packages.
        exposed_ports: such as `50051/tcp`.
        visibility: of all targets.
    """
    py_image_layers(
        name = name + "_layers",
        binary = binary,
        visibility = visibility,
    )
    image_labels(
        name = name + "_labels",
        labels = labels,
    )
    oci_image(
        name = name,
        base = base,
        entrypoint = PY_ENTRYPOINT,
        exposed_ports = exposed_ports,
        labels = ":%s_labels" % name,
        tars = [":%s_layers" % name],
        user = _USER,
        visibility = visibility,
    )
    image_sbom(
        name = name + "_sbom",
        image = name,
        requirements_lock = requirements_lock,
        visibility = visibility,
    )
    oci_load(
        name = name + "_load",
        image = name,
        repo_tags = [repository + ":latest"],
        visibility = visibility,
    )
    oci_push(
        name = name + "_push",
        image = name,
        visibility = visibility,
    )
