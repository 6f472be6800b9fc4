"""Pushing the image that Bazel built, and what helps if a registry refuses it."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tools.kubernetes.deploy.deploy import step
from tools.kubernetes.deploy.manifests import Manifests
from tools.kubernetes.deploy.rollout import FailedError

_LOG_IN = (
    "{host} wants to know who you are: log in by `crane auth login {host}`, `podman login {host}` or"
    " `docker login {host}`, or have a credential helper in ~/.docker/config.json; --no-push takes an image"
    " that is there already."
)

_ADVICE = {
    r"docker-credential-|error getting credentials": (
        "the program that ~/.docker/config.json names for the credentials of {host} is not there or failed;"
        " in closed mode have the login itself in that file."
    ),
    # The first that matches is told. A registry may say "denied" to a stranger, too.
    r"\b401\b|unauthorized|authentication required|no basic auth": _LOG_IN,
    r"\b403\b|\bdenied\b|forbidden": (
        "the account that is logged in at {host} may not write to {name}, or none is: let it be given the"
        " right to push there, or log in as another by `crane auth login {host}`."
    ),
    r"\b429\b|too ?many ?requests": (
        "{host} takes no more requests for now: wait, or log in by `crane auth login {host}`, which often"
        " allows more."
    ),
    r"\b404\b|name_unknown|name unknown|not_found|repository .*(?:not found|not exist)": (
        "{host} has no repository {name}: make it there, as some registries want, or take another by"
        " --//tools/kubernetes:repository=HOST/NAME."
    ),
    r"x509|certificate|tls: |server gave http response": (
        "{host} has a certificate that this machine does not trust, or none: install its authority's"
        " certificate on this machine."
    ),
    r"\b50[0234]\b|internal[ _](server )?error|bad gateway|unavailable": (
        "{host} has a fault of its own: deploy again later; the layers that it has are not sent again."
    ),
    r"no such host|connection refused|i/o timeout|network is unreachable": (
        "{host} can't be reached from here: look at the name, which the overlay's `images` or"
        " --//tools/kubernetes:repository=HOST/NAME sets, and at the network."
    ),
}
"""What to do, by what crane or skopeo said."""


def push_image(program: Path, digest_file: Path, manifests: Manifests) -> None:
    """Push the image that was built to each repository from which a container takes it.

    Args:
        program: pushes it, given `--repository`.
        digest_file: has the digest of the image.
        manifests: the images without that digest are others'.

    Raises:
        FailedError: no container has it, or it could not be pushed.

    """
    digest = digest_file.read_text().strip()
    images = dict.fromkeys(image for _, image in manifests.images())
    repositories = dict.fromkeys(_repository(image) for image in images if image.endswith(f"@{digest}"))
    if not repositories:
        raise FailedError(
            f"no container has the image that was built, {digest}; they have {', '.join(images)}."
            " Let the overlay's `images` leave the digest to the build, or pass --no-push"
        )
    for repository in repositories:
        with step(f"pushing {repository}@{digest}", "the cluster was not changed"):
            _push(program, repository)


def advice(repository: str, output: str) -> str:
    """Return what may help with the errors of a registry, or nothing."""
    host, name = _host_and_name(repository)
    texts = (text for pattern, text in _ADVICE.items() if re.search(pattern, output, re.IGNORECASE))
    return next(texts, "").format(host=host, name=name)


def _repository(image: str) -> str:
    """Return where an image with a digest is, without the tag that it may have beside."""
    return re.sub(r":[^/]*$", "", image.partition("@")[0])


def _host_and_name(repository: str) -> tuple[str, str]:
    """Return the registry's host and the name there; a name without a host is one of Docker Hub."""
    host, _, name = repository.partition("/")
    if name and (host == "localhost" or re.search("[.:]", host)):
        return host, name
    return "docker.io", repository if name else f"library/{repository}"


def _push(program: Path, repository: str) -> None:
    # A program in the runfiles of this one finds its own there.
    environment = os.environ | {"RUNFILES_DIR": str(Path.cwd().parent)}
    command = [str(program), "--repository", repository]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        assert process.stderr
        said = []
        while part := os.read(process.stderr.fileno(), 4096):
            # The bar of a push is drawn as it goes.
            sys.stderr.buffer.write(part)
            sys.stderr.flush()
            said.append(part)
    if process.returncode:
        host, name = _host_and_name(repository)
        text = f"the image was not pushed to {host}/{name} (exit code {process.returncode})"
        helps = advice(repository, b"".join(said).decode(errors="replace"))
        raise FailedError("\n".join(filter(None, [text, helps])))
