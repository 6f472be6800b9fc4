"""For which machine a program or library is."""

ELF = b"\x7fELF"
MACHINES = {3: "386", 40: "arm", 62: "amd64", 183: "arm64"}
"""OCI's names of architectures by the numbers that ELF has for them."""

_LITTLE_ENDIAN = b"\1"
_MACH_O = {bytes.fromhex(magic) for magic in ("feedface", "feedfacf", "cefaedfe", "cffaedfe")}
_MACH_O_FAT = bytes.fromhex("cafebabe")
_FIRST_JAVA_VERSION = 45
"""Class files begin as fat Mach-O does, and then have their version where that has a small count."""


def platform_of(content: bytes) -> str | None:
    """Return the platform of a native file, such as `linux/arm64`, or None for any other file."""
    if content[:4] == ELF:
        little = content[5:6] == _LITTLE_ENDIAN
        number = int.from_bytes(content[18:20], "little" if little else "big")
        return f"linux/{MACHINES.get(number, f'ELF machine {number}')}"
    fat = content[:4] == _MACH_O_FAT and int.from_bytes(content[4:8]) < _FIRST_JAVA_VERSION
    return "darwin" if fat or content[:4] in _MACH_O else None
