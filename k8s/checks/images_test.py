import pytest

from k8s.checks import images
from k8s.checks.testing import changed, texts

DEPLOYMENT = "Deployment/user-service"
PATH = "spec.template.spec.containers.0.image"
FIELD = "spec.template.spec.containers[user-service].image"
DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    "image", ["user-service", "user-service:latest", "localhost:5000/user-service", "u@sha256:00"]
)
def test_image_that_moves(image):
    """No image is the latest, in whichever overlay, neither by its tag nor for want of one."""
    assert texts(images.have_a_version, changed("dev", (DEPLOYMENT, PATH, image))) == [
        f"{DEPLOYMENT}: {FIELD}: {image!r} is whatever was pushed last; name a version or a digest"
    ]


@pytest.mark.parametrize(
    "image", ["user-service:1.0", f"user-service@{DIGEST}", f"user-service:latest@{DIGEST}"]
)
def test_image_with_a_version(image):
    """A tag will do where it is not released, and a digest overrules a tag."""
    assert texts(images.have_a_version, changed("dev", (DEPLOYMENT, PATH, image))) == []


def test_released_image_without_a_digest():
    """In staging and production a tag is not enough."""
    image = "registry.example.com/user-service:1.0"
    assert texts(images.have_a_digest, changed("prod", (DEPLOYMENT, PATH, image))) == [
        f"{DEPLOYMENT}: {FIELD}: {image!r} has no digest; write NAME@sha256:DIGEST, as the registry gave it"
    ]


def test_init_containers_have_images_too():
    """Containers that run before the server count."""
    change = (DEPLOYMENT, "spec.template.spec.initContainers", [{"name": "wait", "image": "busybox"}])
    [text] = texts(images.have_a_version, changed("prod", change))
    assert "spec.template.spec.initContainers[wait].image: 'busybox' is" in text
