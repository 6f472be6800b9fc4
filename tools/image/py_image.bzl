"""py_image: a py_binary as an image for several architectures, with all that is done with one."""

load("@rules_oci//oci:defs.bzl", "oci_image", "oci_image_index", "oci_load", "oci_push")
load("//tools/image:image_labels.bzl", "image_labels")
load("//tools/image:image_sbom.bzl", "image_sbom")
load("//tools/image:py_image_layers.bzl", "CPUS", "PY_ENTRYPOINT", "py_image_layers")

# `nonroot` of distroless images, as a number since Kubernetes does not look names up.
_USER = "65532:65532"

def py_image(name, binary, bases, repository, labels, requirements_lock, exposed_ports = [], visibility = None):
    """Makes an image and the targets NAME_load, NAME_push and NAME_sbom.

    NAME is the index of an image NAME_ARCHITECTURE for each base; it is what is pushed. NAME_load
    takes the one for this machine, NAME_sbom is a file for each.

    Args:
        name: the target's name, an OCI layout.
        binary: a py_binary that is called as its main file.
        bases: for each architecture ("amd64", "arm64") the image below, with glibc and certificates.
        repository: what the image is called on this machine; NAME_push has `--repository`.
        labels: those of the OCI specification, without version and revision.
        requirements_lock: the lock that pins the packages.
        exposed_ports: such as `50051/tcp`.
        visibility: of all targets.
    """
    image_labels(
        name = name + "_labels",
        labels = labels,
    )
    images = {architecture: name + "_" + architecture for architecture in bases}
    for architecture, image in images.items():
        py_image_layers(
            name = image + "_layers",
            architecture = architecture,
            binary = binary,
            visibility = visibility,
        )
        oci_image(
            name = image,
            base = bases[architecture],
            entrypoint = PY_ENTRYPOINT,
            exposed_ports = exposed_ports,
            labels = ":%s_labels" % name,
            tars = [":%s_layers" % image],
            user = _USER,
            visibility = visibility,
        )
        image_sbom(
            name = image + "_sbom",
            image = image,
            requirements_lock = requirements_lock,
            visibility = visibility,
        )
    oci_image_index(
        name = name,
        images = images.values(),
        visibility = visibility,
    )
    native.filegroup(
        name = name + "_sbom",
        srcs = [image + "_sbom" for image in images.values()],
        visibility = visibility,
    )
    oci_load(
        name = name + "_load",
        image = select({
            Label("@platforms//cpu:" + CPUS[architecture]): image
            for architecture, image in images.items()
        }),
        repo_tags = [repository + ":latest"],
        visibility = visibility,
    )
    oci_push(
        name = name + "_push",
        image = name,
        visibility = visibility,
    )
