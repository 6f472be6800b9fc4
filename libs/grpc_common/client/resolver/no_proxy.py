"""Whether NO_PROXY names the API server, which in a pod is known by its IP address alone."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass


def bypasses_proxy(url: str) -> bool:
    """Return whether `url` is to be reached without a proxy, as Go's clients read NO_PROXY or no_proxy.

    Python's standard library, and aiohttp with it, knows names, suffixes and ports there, but neither
    CIDRs such as 10.0.0.0/8, nor other spellings of an address, nor `*` among other entries.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return False  # the request tells what is wrong with it
    host = parts.hostname or ""
    entries = [entry.strip() for entry in getproxies_environment().get("no", "").split(",")]
    if "*" in entries or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return True
    try:
        ip = ip_address(host)
    except ValueError:
        return False
    return any(_covers(entry, ip) for entry in entries)


def _covers(entry: str, ip: IPv4Address | IPv6Address) -> bool:
    try:
        return ip in ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        return False
