"""What an account may not do, told once: the API server says it for each object."""

import re

_FORBIDDEN = re.compile(
    r'User "(?P<user>[^"]+)" cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)"'
    r' in API group "(?P<group>[^"]*)"'
    r'(?P<where> in the namespace "[^"]+"| at the cluster scope)?'
)


def told_once(error: str) -> str:
    """Return an error with all lines of missing rights as one, and with what gives them."""
    missing = list(_FORBIDDEN.finditer(error))
    if not missing:
        return error
    rights = dict.fromkeys(_right(each) for each in missing)
    users = dict.fromkeys(each["user"] for each in missing)
    others = [line for line in error.splitlines() if line.strip() and not _FORBIDDEN.search(line)]
    text = (
        f"{', '.join(users)} may not {'; '.join(rights)}. An administrator gives a deployer its rights by"
        " `kubectl apply -k` of its folder in k8s/deployer; the bindings there name who has them"
    )
    return "\n".join([text, *others])


def _right(found: re.Match[str]) -> str:
    resource = f"{found['resource']}{f'.{found["group"]}' if found['group'] else ''}"
    return f"{found['verb']} {resource}{found['where'] or ''}".replace('"', "")
