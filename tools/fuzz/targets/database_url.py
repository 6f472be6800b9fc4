"""URLs of databases, which may hold a password wherever one was put by mistake."""

from urllib.parse import urlsplit

from grpc_common.config.document import ConfigError
from grpc_common.config.loading import load, to_yaml
from grpc_common.config.urls import is_plain_url, mask_url
from services.user.config import UserServiceConfig
from tools.fuzz.properties import check_hidden, check_shown


def fuzz(data: bytes) -> None:
    """No error, no printed configuration and no log has what stands where a password does."""
    url = data.replace(b"\0", b"").decode("utf-8", "surrogateescape")
    password = url.partition("://")[2].rpartition("@")[0].partition(":")[2]
    secrets = [password, url.rpartition("?")[2] if "?" in url else ""]
    rest = url.replace(password, "", 1) if password else url
    check_hidden(mask_url(url), *(secret for secret in secrets if secret not in rest))
    try:
        config = load(UserServiceConfig, None, {"DATABASE_URL": url})
    except ConfigError as error:
        check_shown(str(error))
        known = str(error).replace("USER:PASSWORD@HOST:PORT/NAME", "")
        check_hidden(known, *(secret for secret in secrets if secret not in _MESSAGES))
        return
    if config.database.is_postgresql:
        assert is_plain_url(config.database.url)
        shown = to_yaml(config) + config.database.name
        given = urlsplit(config.database.url).password
        if given and config.database.url.count(given) == 1 and given not in _PLAIN:
            check_hidden(shown, given)
    check_shown(config.database.name)


def _messages() -> str:
    """Return the errors of URLs that hold no secret."""
    texts = []
    for url in (
        "postgresql://h:x",
        "postgresql://h:99999/",
        "postgresql://h/?password=a",
        "x",
        "sqlite:///a?b",
    ):
        try:
            load(UserServiceConfig, None, {"DATABASE_URL": url})
        except ConfigError as error:
            texts.append(str(error))
    return "\n".join(texts)


_MESSAGES = _messages()
_PLAIN = to_yaml(UserServiceConfig())
