"""Writes an image's bill of materials, as CycloneDX JSON: IMAGE REQUIREMENTS_LOCK OUTPUT.

It is read from the image itself: the application from its layer, Debian's packages from
/var/lib/dpkg/status.d, as scanners do it, Python's from the metadata that every wheel has, and what these
and the interpreter bundle from bundled.py's traces. The lock adds the hashes of the wheels it accepts.
"""

import csv
import re
import sys
import uuid
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path

from cyclonedx.contrib.hash.factories import HashTypeFactory
from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashType, Property, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, License
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from tools.image.bundled import Bundled, bundled
from tools.image.image_files import Image

_STATUS = re.compile(r"var/lib/dpkg/status\.d/(?P<package>[^/]+)(?<!\.md5sums)")
_METADATA = re.compile(r"(?P<folder>opt/packages/[^/]+\.dist-info)/METADATA")
_INTERPRETER = "opt/python/bin/python3"
_PYTHON_VERSION = re.compile(rb"\0(3\.\d+\.\d+(?:(?:a|b|rc)\d+)?)\0")
_COPYRIGHT = "usr/share/doc/{package}/copyright"

_LOCKED = re.compile(
    r"^(?P<name>[\w.-]+)(?:\[.*\])?==\S+(?P<hashes>(?: \\\n +--hash=sha256:\w+)+)", re.MULTILINE
)
_HASH = re.compile(r"sha256:\w+")


def bill(image: Image, lock: str) -> Bom:
    """Return the bill of materials of an image whose packages are pinned by a lock's text."""
    labels = image.config()["config"]["Labels"]
    digest = image.digest()
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_OID, digest))
    # CycloneDX does not ask for a time, and now would make another file each time.
    bom.metadata.timestamp = None  # type: ignore[assignment]
    bom.metadata.component = Component(
        name=labels["org.opencontainers.image.title"],
        version=labels.get("org.opencontainers.image.version", digest),
        type=ComponentType.CONTAINER,
        bom_ref=digest,
        hashes=_hashes([digest]),
        licenses=_licenses([labels["org.opencontainers.image.licenses"]]),
    )
    files = image.files()
    application = _application(image, labels)
    debian = list(_debian_packages(files))
    owners = {_cpython(files): _below("opt/python/", files)}
    owners |= dict(_python_packages(files, _locked(lock)))
    for owner, own_files in owners.items():
        parts = [_part(owner, part) for part in sorted(bundled(own_files), key=lambda part: part.purl)]
        # The same in two files of a wheel is one.
        unique = {part.bom_ref.value: part for part in parts}.values()
        bom.components.update([owner, *unique])
        bom.register_dependency(owner, unique)
    bom.components.update([application, *debian])
    bom.register_dependency(application, owners)
    bom.register_dependency(bom.metadata.component, [application, *owners, *debian])
    return bom


def _below(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {path: content for path, content in files.items() if path.startswith(folder)}


def _application(image: Image, labels: dict[str, str]) -> Component:
    layer = "sha256:" + image.layers()[-1].name
    version = labels.get("org.opencontainers.image.version", layer)
    return Component(
        name=labels["org.opencontainers.image.title"],
        version=version,
        type=ComponentType.APPLICATION,
        bom_ref="application",
        description="what is in /opt/application",
        hashes=_hashes([layer]),
        licenses=_licenses([labels["org.opencontainers.image.licenses"]]),
    )


def _part(owner: Component, part: Bundled) -> Component:
    return Component(
        name=part.name,
        version=part.version,
        type=ComponentType.LIBRARY,
        bom_ref=f"{owner.bom_ref.value}#{part.purl or part.name}",
        purl=PackageURL.from_string(part.purl) if part.purl else None,
        licenses=_licenses([part.license] if part.license else []),
        properties=[Property(name="bundled:in", value=f"/{part.path}")],
    )


def _cpython(files: dict[str, bytes]) -> Component:
    found = _PYTHON_VERSION.search(files[_INTERPRETER])
    if not found:
        sys.exit(f"error: /{_INTERPRETER} does not say its version, as CPython does")
    version = found[1].decode()
    return Component(
        name="cpython",
        version=version,
        type=ComponentType.PLATFORM,
        bom_ref=f"cpython@{version}",
        cpe=f"cpe:2.3:a:python:python:{version}:*:*:*:*:*:*:*",
        purl=PackageURL("generic", None, "cpython", version),
        licenses=_licenses(["PSF-2.0"]),
    )


def _debian_packages(files: dict[str, bytes]) -> Iterator[Component]:
    for path, content in files.items():
        if match := _STATUS.fullmatch(path):
            status = _parsed(content)
            name = match["package"]
            copyright_path = _COPYRIGHT.format(package=name)
            found = re.findall(r"^License: *(\S.*)$", files.get(copyright_path, b"").decode(), re.MULTILINE)
            # Some packages, such as gcc's, tell it in prose only.
            licenses = sorted(set(found)) or [f"see /{copyright_path}"]
            yield _component(
                PackageURL("deb", "debian", name, status["Version"], {"arch": status["Architecture"]}),
                licenses=[DisjunctiveLicense(name=text) for text in licenses],
            )


def _python_packages(
    files: dict[str, bytes], locked: dict[str, list[str]]
) -> Iterator[tuple[Component, dict[str, bytes]]]:
    for path, content in files.items():
        if match := _METADATA.fullmatch(path):
            metadata = _parsed(content)
            purl = PackageURL("pypi", None, _normalized(metadata["Name"]), metadata["Version"])
            wheels = ExternalReference(
                type=ExternalReferenceType.DISTRIBUTION,
                url=XsUri(purl.to_string()),
                comment="the files that the lock accepts; the image has one of them",
                hashes=_hashes(locked[purl.name]),
            )
            licenses = _licenses(_license_texts(metadata))
            own_files = _recorded(files, files[f"{match['folder']}/RECORD"].decode())
            yield _component(purl, licenses=licenses, external_references=[wheels]), own_files


def _recorded(files: dict[str, bytes], record: str) -> dict[str, bytes]:
    paths = [f"opt/packages/{row[0]}" for row in csv.reader(record.splitlines())]
    return {path: files[path] for path in paths if path in files}


def _component(purl: PackageURL, **more: object) -> Component:
    reference = purl.to_string()
    return Component(
        name=purl.name,
        version=purl.version,
        type=ComponentType.LIBRARY,
        purl=purl,
        bom_ref=reference,
        **more,  # type: ignore[arg-type]
    )


def _parsed(content: bytes) -> Message:
    return Parser().parsestr(content.decode())


def _license_texts(metadata: Message) -> list[str]:
    if expression := metadata["License-Expression"]:
        return [expression]
    found = [
        text.rpartition(" :: ")[2]
        for text in metadata.get_all("Classifier", [])
        if text.startswith("License ::")
    ]
    # Some have the whole text in this field.
    return found or [text for text in metadata.get_all("License", []) if "\n" not in text]


def _licenses(texts: list[str]) -> list[License]:
    factory = LicenseFactory()
    return [factory.make_from_string(text) for text in sorted(set(texts))]


def _hashes(texts: list[str]) -> list[HashType]:
    return [HashTypeFactory().from_composite_str(text) for text in texts]


def _locked(lock: str) -> dict[str, list[str]]:
    return {_normalized(match["name"]): _HASH.findall(match["hashes"]) for match in _LOCKED.finditer(lock)}


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main(image: Path, lock: Path, output: Path) -> None:
    """Write the bill of materials."""
    bom = bill(Image(image), lock.read_text())
    output.write_text(JsonV1Dot6(bom).output_as_string(indent=2) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
