"""Names of callers in a configuration."""

from grpc_common.config.callers import parse_allowed_callers, parse_caller, parse_proxy
from tools.fuzz.properties import check_shown


def fuzz(data: bytes) -> None:
    """A name is compared in one form, which is taken too; the first line is a pattern of methods."""
    pattern, *names = data.decode("utf-8", "surrogateescape").split("\n")
    try:
        allowed = parse_allowed_callers({pattern: names})
    except ValueError as error:
        check_shown(str(error), (10 * len(data) + 400) * (len(names) + 1))
    else:
        for name in allowed[pattern]:
            check_shown(name)
            assert "\n" not in name
            assert parse_caller(name.partition(":")[2] if is_san(name) else name) == name
    for name in names:
        try:
            assert parse_proxy(name) == name
        except ValueError as error:
            check_shown(str(error))
        else:
            check_shown(name)


def is_san(caller: str) -> bool:
    """Return whether a caller in its compared form is a SAN, which has its kind before it."""
    return not caller.startswith(("subject:", "scope:"))
