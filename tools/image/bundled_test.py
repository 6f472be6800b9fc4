import json

from tools.image.bundled import bundled

LIBRARY = b"\x7fELF\2\1\1" + bytes(11) + b"\x3e\0"
"""The begin of one for linux/amd64."""


def found(files: dict[str, bytes]) -> dict[str, str | None]:
    """Return the versions of what files bundle."""
    return {part.name: part.version for part in bundled(files)}


def test_linked_libraries_leave_traces():
    """A version is told where the library tells it; one without is named all the same."""
    content = (
        LIBRARY + b"\0OpenSSL 3.5.4 30 Sep 2025\0 deflate 1.3.1 Copyright\0BoringSSL\0N4absl12lts_20260526"
    )
    assert found({"opt/packages/x/y.so": content}) == {
        "abseil-cpp": "20260526",
        "boringssl": None,
        "openssl": "3.5.4",
        "zlib": "1.3.1",
    }


def test_texts_that_are_not_linked_are_no_traces():
    """Documentation may name a library; a version alone counts only in the file that is known for it."""
    assert found({"opt/packages/x/readme.txt": b"BoringSSL"}) == {}
    versions = LIBRARY + b"\0" + b"1.34.5\0" + b"0.2.5\0"
    assert found({"opt/packages/x/y.so": versions}) == {}
    assert found({"opt/packages/pycares/_cares.abi3.so": versions}) == {"c-ares": "1.34.5"}
    assert found({"opt/packages/yaml/_yaml.cpython.so": versions}) == {"libyaml": "0.2.5"}


def test_grafted_libraries_are_named():
    """What auditwheel puts into a folder .libs has its name and its version in the file's name."""
    files = ["libpq-9b38f5e3.so.5.17", "libssl.so.3", "libopenblas64_p-r0-0cf96a72.3.23.dev.so"]
    assert found({f"opt/packages/psycopg.libs/{name}": LIBRARY for name in files}) == {
        "libpq": "5.17",
        "libssl": "3",
        "libopenblas64_p-r0-0cf96a72.3.23.dev": None,
    }


def test_bill_of_a_wheel_counts_more_than_traces():
    """A wheel's own bill (PEP 770) is taken over; what it names is not named a second time."""
    bill = {
        "bomFormat": "CycloneDX",
        "components": [
            {
                "type": "library",
                "name": "openssl",
                "version": "4.0.3",
                "purl": "pkg:generic/openssl@4.0.3",
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            }
        ],
    }
    files = {
        "opt/packages/x/_rust.so": LIBRARY + b"OpenSSL 4.0.3 29 Sep 2026\0",
        "opt/packages/x-1.dist-info/sboms/sbom.json": json.dumps(bill).encode(),
    }
    [part] = bundled(files)
    assert (part.name, part.version, part.license) == ("openssl", "4.0.3", "Apache-2.0")
    assert part.path.endswith("sbom.json")


def test_bill_in_another_format_is_no_fault():
    """SPDX is allowed by PEP 770 as well; traces still count."""
    files = {
        "opt/packages/x/y.so": LIBRARY + b"BoringSSL",
        "opt/packages/x-1.dist-info/sboms/x.spdx.json": b'{"spdxVersion": "SPDX-2.3", "packages": []}',
    }
    assert found(files) == {"boringssl": None}
