"""kubernetes_overlay: the targets that render, compare, deploy and delete a Kustomize overlay."""

load("@rules_python//python:py_binary.bzl", "py_binary")
load(":kustomize.bzl", "kustomize_build")

_PROGRAM = Label("//tools/kubernetes/deploy:cli.py")
_KUBECTL = Label("@multitool//tools/kubectl")

def kubernetes_overlay(name, srcs, image, image_name, push, visibility = None):
    """Declares the targets of the overlay in the folder overlays/NAME.

    Args:
        name: the overlay's. The target of this name renders it as it is in the files.
        srcs: all files that overlays are made of.
        image: the image that the Deployments run.
        image_name: what the manifests call it.
        push: the oci_push of the image.
        visibility: of what it renders.
    """
    overlay = "overlays/" + name
    settings = overlay + "/deploy.yaml"
    kustomize_build(
        name = name,
        srcs = srcs,
        overlay = overlay,
        visibility = visibility,
    )
    kustomize_build(
        name = name + "_with_image",
        srcs = srcs,
        images = {image + ".digest": image_name},
        overlay = overlay,
    )
    for command in ["deploy", "diff", "delete", "render"]:
        py_binary(
            name = "%s_%s" % (command, name),
            srcs = [_PROGRAM],
            main = _PROGRAM,
            args = [
                "--overlay=" + name,
                "--manifests=$(rootpath :%s_with_image)" % name,
                "--settings=$(rootpath %s)" % settings,
                "--contexts=$(CONTEXTS)",
                "--kubectl=$(rootpath %s)" % _KUBECTL,
                "--push=$(rootpath %s)" % push,
                "--digest=$(rootpath %s.digest)" % image,
                command,
            ],
            data = [
                ":%s_with_image" % name,
                settings,
                push,
                image + ".digest",
                _KUBECTL,
            ],
            toolchains = [Label("//tools/kubernetes:contexts")],
            deps = [Label("//tools/kubernetes/deploy")],
        )
