"""What is in the images, for both architectures, and that nothing else is."""

import csv
import json
import marshal
import re
import subprocess
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.image.platforms import ARCHITECTURES, EMULATOR, FOREIGN, emulator
from tools.image.image_files import Image, layer_entries
from tools.image.machines import platform_of

FOLDER = Path("services/user").absolute()

TITLES = {"image": "user-service", "client_image": "user-service-client"}

IMAGES = {
    f"{name}_{architecture}": Image(FOLDER / f"{name}_{architecture}")
    for name in TITLES
    for architecture in ARCHITECTURES
}

LARGEST_APPLICATION = 1_000_000
"""Bytes that a change of a service's file may cost at most, compressed."""

LARGEST_IMAGE = 80_000_000
"""Bytes of all layers, compressed. With more, look for what came along."""

EXECUTABLES = re.compile(
    "opt/python/bin/python3"
    r"|usr/lib/[^/]+/ld-linux-[^/]+"  # the kernel starts it for Python
)

MADE_FOR_IMAGES = {"etc/group", "etc/nsswitch.conf", "etc/passwd"}
"""Files of the base that no package has."""


@pytest.fixture(scope="module", params=IMAGES)
def name(request):
    """Return the name of each image."""
    return request.param


@pytest.fixture(scope="module")
def image(name):
    """Return each image."""
    return IMAGES[name]


@pytest.fixture(scope="module")
def architecture(name):
    """Return what each image is for."""
    return name.rpartition("_")[2]


@pytest.fixture(scope="module")
def entries(image):
    """Return what is in an image, by path."""
    return image.entries()


@pytest.fixture(scope="module")
def is_base_pulled(entries):
    """Return whether the base is as somebody else made it, in public mode."""
    return b"Distroless" in entries["usr/lib/os-release"].content


@pytest.fixture(scope="module")
def ours(image, entries, is_base_pulled):
    """Return what is made by this repository: everything, or all but the base."""
    own_layers = image.layers()[-3:]
    return (
        dict(entry for layer in own_layers for entry in layer_entries(layer)) if is_base_pulled else entries
    )


@pytest.fixture(scope="module")
def root(entries, tmp_path_factory):
    """Return a folder with the files and links of an image."""
    folder = tmp_path_factory.mktemp("root")
    for path, entry in sorted(entries.items()):
        file = folder / path
        if entry.member.isdir():
            file.mkdir(exist_ok=True)
        elif entry.member.issym():
            file.symlink_to(entry.member.linkname)
        else:
            file.write_bytes(entry.content)
            file.chmod(entry.member.mode)
    return folder


def test_every_executable_is_known(ours):
    """There is the interpreter and its loader: no shell, no package manager, no other program."""
    files = {path: entry.member for path, entry in ours.items() if not entry.member.isdir()}
    executables = [path for path, member in files.items() if member.isfile() and member.mode & 0o111]
    assert [path for path in executables if not EXECUTABLES.fullmatch(path)] == []
    assert "opt/python/bin/python3" in executables
    assert not [path for path in files if re.match(r"(usr/)?(local/)?s?bin/", path)]


def test_no_shell_and_no_package_manager(entries):
    """Not even the base has one, nor a module that would do."""
    tools = r"(.*/)?s?bin/(sh|bash|dash|ash|busybox|apt|apt-get|dpkg|apk|pip3?|perl)"
    assert [path for path in entries if re.fullmatch(tools, path)] == []
    assert [path for path in entries if re.search(r"/(pip|setuptools|ensurepip)/", path)] == []


def test_nothing_can_be_changed_or_gives_rights(ours):
    """All belongs to root and only root could write it, but for the user's home and /tmp."""
    for path, entry in ours.items():
        if path in {"home/nonroot", "tmp"} or entry.member.issym():
            continue
        assert (entry.member.uid, entry.member.gid) == (0, 0), path
        assert not entry.member.mode & 0o7022, path


def test_entries_have_no_time(image):
    """Each is of 1970 and in order, in every layer of ours."""
    for layer in image.layers()[-3:]:
        listed = [(path, entry.member.mtime) for path, entry in layer_entries(layer)]
        assert {time for _, time in listed} == {0}
        paths = [path.split("/") for path, _ in listed]
        assert paths == sorted(paths)


def test_programs_and_libraries_are_for_its_machine(entries, architecture):
    """No file of the base, the interpreter or a wheel is for another machine, or for a Mac."""
    platforms = {path: platform_of(entry.content) for path, entry in entries.items()}
    native = {path: found for path, found in platforms.items() if found}
    assert len(native) > 50
    assert {path: found for path, found in native.items() if found != f"linux/{architecture}"} == {}


@pytest.mark.parametrize("name", TITLES)
def test_index_has_an_image_for_each_architecture(name):
    """What is pushed is the index of both images, by their digests."""
    index = json.loads((FOLDER / name / "index.json").read_bytes())
    (descriptor,) = index["manifests"]
    blob = FOLDER / name / "blobs" / descriptor["digest"].replace(":", "/")
    manifests = json.loads(blob.read_bytes())["manifests"]
    platforms = [(each["platform"]["os"], each["platform"]["architecture"]) for each in manifests]
    assert platforms == [("linux", architecture) for architecture in ARCHITECTURES]
    images = [IMAGES[f"{name}_{architecture}"] for architecture in ARCHITECTURES]
    assert [each["digest"] for each in manifests] == [image.digest() for image in images]


def test_mac_builds_the_same():
    """Built for a Mac, the image is the same one for Linux, to the byte."""
    digest = (FOLDER / "image.json.sha256").read_text().strip()
    assert digest.startswith("sha256:")
    assert Path("tests/image/digest_of_a_mac").read_text().strip() == digest


def test_application_is_the_same_for_each_architecture():
    """Python is for every machine: nodes, registries and scanners see one layer of ours."""
    for name in TITLES:
        layers = {IMAGES[f"{name}_{architecture}"].layers()[-1].name for architecture in ARCHITECTURES}
        assert len(layers) == 1


def test_says_how_it_runs(name, architecture, image):
    """It starts the interpreter itself, isolated, as a user by number, and carries the labels of OCI."""
    config = image.config()
    assert (config["os"], config["architecture"]) == ("linux", architecture)
    assert config["config"]["User"] == "65532:65532"
    assert config["config"]["Entrypoint"] == ["/opt/python/bin/python3", "-I", "-B", "/opt/application"]
    assert "Cmd" not in config["config"]
    labels = {
        key.removeprefix("org.opencontainers.image."): text
        for key, text in config["config"]["Labels"].items()
    }
    assert labels["title"] == TITLES[name.removesuffix(f"_{architecture}")]
    assert labels.keys() == {"title", "description", "licenses", "source"}, "no stamps without --stamp"
    assert set(config["config"].get("ExposedPorts", {})) == (
        {"50051/tcp", "9090/tcp"} if name.startswith("image") else set()
    )


def test_layers_are_in_the_order_of_their_changes(image):
    """The base is below, then the interpreter, packages, and the application with a few kilobytes."""
    *_, interpreter, packages, application = image.layers()
    folders = [
        {"/".join(path.split("/")[:2]) for path, _ in layer_entries(layer)} - {"opt"}
        for layer in (interpreter, packages, application)
    ]
    assert folders == [{"opt/python"}, {"opt/packages"}, {"opt/application"}]
    assert application.stat().st_size < LARGEST_APPLICATION
    assert sum(layer.stat().st_size for layer in image.layers()) < LARGEST_IMAGE


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_images_share_base_and_interpreter(architecture):
    """A node that has one image pulls only packages and application of the other."""
    server, client = (IMAGES[f"{name}_{architecture}"].manifest()["layers"] for name in TITLES)
    assert server[:-2] == client[:-2]


def test_application_is_what_the_program_imports():
    """Ours, generated code too, is in the application's layer, without tests."""
    *_, layer = IMAGES["image_amd64"].layers()
    files = {path.removeprefix("opt/application/") for path, _ in layer_entries(layer)}
    assert {
        "__main__.py",
        "services/user/server.py",
        "grpc_common/server/server.py",
        "user/user_service_pb2.py",
    } <= files
    assert not [file for file in files if re.search(r"_test\.py|conftest|testing", file)]


def test_python_is_compiled_without_traces_of_the_build(entries):
    """Each source has bytecode that is never checked, and that knows no folder of the build machine."""
    sources = [path for path in entries if path.endswith(".py") and path.startswith("opt/")]
    compiled = {path: entry.content for path, entry in entries.items() if path.endswith(".pyc")}
    assert {_compiled_path(path) for path in sources} == set(compiled)
    for path, content in compiled.items():
        unchecked_hash = content[4:8] == b"\1\0\0\0"
        assert unchecked_hash, path
        assert marshal.loads(content[16:]).co_filename == f"/{_source_path(path)}"  # noqa: S302 (our own)


def _compiled_path(source: str) -> str:
    folder, _, file = source.rpartition("/")
    return f"{folder}/__pycache__/{file.removesuffix('.py')}.cpython-314.pyc"


def _source_path(compiled: str) -> str:
    return re.sub(r"__pycache__/([^/]+)\.cpython-314\.pyc$", r"\1.py", compiled)


def test_libraries_are_those_that_are_linked_to(root, architecture, is_base_pulled):
    """The image's own loader finds every library in the image, and our base has no more than these."""
    if architecture == FOREIGN and not emulator():
        pytest.skip(f"the loader is for linux/{FOREIGN}, and there is no {EMULATOR} to run it")
    emulated = [emulator()] if architecture == FOREIGN else []
    (libraries,) = root.glob("usr/lib/*-linux-gnu")
    (loader,) = libraries.glob("ld-linux-*")
    extensions = [*root.glob("opt/**/*.so"), *root.glob("opt/**/*.so.*")]
    used = {loader}
    for file in [root / "opt/python/bin/python3", *extensions]:
        command = [*emulated, loader, "--inhibit-cache", "--library-path", libraries, "--list", file]
        listed = subprocess.run(command, check=False, capture_output=True, text=True)
        assert listed.returncode == 0, f"{file.relative_to(root)}: {listed.stderr}"
        used |= {Path(path) for path in re.findall(r"(/\S+) \(0x", listed.stdout)}
    outside = {path for path in used if not path.is_relative_to(root) and path.name != loader.name}
    assert outside == set()
    if not is_base_pulled:
        there = {path.resolve().name for path in libraries.iterdir()}
        assert there == {path.resolve().name for path in used if path.is_relative_to(root)}


def test_every_file_is_on_the_bill_of_materials(name, entries, ours):
    """Each file belongs to a component that the bill names, with the version that the file is of."""
    bill = json.loads(Path("services/user", f"{name}_sbom.cdx.json").read_text())
    owners = _debian_owners(entries) | _python_owners(entries)
    known = {component["bom-ref"] for component in bill["components"] if "#" not in component["bom-ref"]}
    (cpython,) = (reference for reference in known if reference.startswith("cpython@"))
    for path in (path for path, entry in ours.items() if not entry.member.isdir()):
        source = _source_path(path)
        if path.startswith("opt/python/"):
            owner = cpython
        elif path.startswith("opt/application/"):
            owner = "application"
        elif path.startswith("var/lib/dpkg/status.d/") or path in MADE_FOR_IMAGES:
            continue  # the image itself, the bill's subject
        else:
            owner = owners.get(source, "nothing")
        assert owner in known, f"{path} belongs to {owner}"
    assert known - {cpython, "application"} == set(owners.values()), "the bill names what is not in the image"


def test_bill_of_materials_is_valid_and_complete(name, image):
    """The bill passes CycloneDX's strict schema, is of this image, and has hashes and licences."""
    text = Path("services/user", f"{name}_sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    assert bill["metadata"]["component"]["bom-ref"] == image.digest()
    assert "timestamp" not in bill["metadata"], "it would make another file each time"
    for component in bill["components"]:
        if "#" in component["bom-ref"]:
            continue  # part of a wheel, which may say less of it
        assert component["licenses"], component["bom-ref"]
        if component["bom-ref"].startswith("pkg:pypi/"):
            assert component["externalReferences"][0]["hashes"], component["bom-ref"]


def test_bill_of_materials_names_what_wheels_bundle(name):
    """Who looks for an OpenSSL finds the one inside of a wheel, with the wheel that depends on it."""
    bill = json.loads((FOLDER / f"{name}_sbom.cdx.json").read_text())
    parts = {(part["bom-ref"].split("@")[0], part["name"]): part for part in bill["components"]}
    assert ("pkg:pypi/grpcio", "boringssl") in parts
    assert re.fullmatch(r"\d{8}", parts["pkg:pypi/grpcio", "abseil-cpp"]["version"])
    if name.startswith("image"):
        openssl = parts["pkg:pypi/cryptography", "openssl"]
        assert re.fullmatch(r"\d+\.\d+\.\d+", openssl["version"])
        assert ("pkg:pypi/pycares", "c-ares") in parts
        depends = {each["ref"]: each.get("dependsOn", []) for each in bill["dependencies"]}
        assert openssl["bom-ref"] in depends[openssl["bom-ref"].split("#")[0]]


def _debian_owners(entries) -> dict[str, str]:
    owners = {}
    for path, entry in entries.items():
        if match := re.fullmatch(r"(var/lib/dpkg/status\.d/([^/]+))\.md5sums", path):
            status = entries[match[1]].content.decode()
            version = re.search(r"^Version: (.*)$", status, re.MULTILINE)[1]
            architecture = re.search(r"^Architecture: (.*)$", status, re.MULTILINE)[1]
            purl = f"pkg:deb/debian/{match[2]}@{version}?arch={architecture}".replace("+", "%2B")
            owners |= {line.split("  ")[1]: purl for line in entry.content.decode().splitlines()}
    return owners


def _python_owners(entries) -> dict[str, str]:
    owners = {}
    for path, entry in entries.items():
        if match := re.fullmatch(r"opt/packages/(?P<name>[^/]+)-(?P<version>[^/]+)\.dist-info/RECORD", path):
            name = re.sub(r"[-_.]+", "-", match["name"]).lower()
            purl = f"pkg:pypi/{name}@{match['version']}"
            recorded = [row[0] for row in csv.reader(entry.content.decode().splitlines())]
            owners |= {f"opt/packages/{file}": purl for file in recorded}
    return owners
