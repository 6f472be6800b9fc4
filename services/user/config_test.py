import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_common import ConfigError, load
from grpc_common.config.loading import to_yaml
from services.user.config import DatabaseConfig, UserServiceConfig

PASSWORDS = st.text("QXZ0123456789:/?#[]@!$&'()*+,;=%. \n\t\\\u212a\uff20é")


def mistake(url: str) -> str:
    """Return the error for a URL."""
    with pytest.raises(ConfigError) as caught:
        load(UserServiceConfig, environ={"DATABASE_URL": url})
    return str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p@h/db",
        "postgresql://u:p%40%2F%3F%23@h:5432/db",
        "postgresql://h1:1,h2:2/db",
        "postgresql://u@[::1]:5432/db?sslmode=verify-full&sslrootcert=/etc/ca.crt",
        "postgresql://u:p@%2Frun%2Fpostgresql/db",
        "postgresql:///db?host=/run/postgresql",
        "postgresql://h/db?sslpassword=p",
        "sqlite:///users.db",
        "sqlite:////data/my users.db",
        "",
    ],
)
def test_url_that_is_right(url):
    """All forms of PostgreSQL's URLs are taken, and paths of files."""
    assert load(UserServiceConfig, environ={"DATABASE_URL": url}).database.url == url


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("postgresql://u:secret/x@h/db", "%2F"),
        ("postgresql://u:1234/secret@h/db", "%2F"),
        ("postgresql://u:secret#x@h/db", "%23"),
        ("postgresql://u:secret?x@h/db", "%3F"),
        ("postgresql://u:x@secret@h/db", "%40"),
        ("postgresql://u:sec ret@h/db", "%20"),
        ("postgresql://u:sec\nret@h/db", "must be postgresql://USER:PASSWORD@HOST:PORT/NAME"),
        ("postgresql://[u:secret@h/db", "must be postgresql://"),
        ("postgresql://u:[secret]@h/db", "must be postgresql://"),
        ("postgresql://u:secret\uff20@h/db", "must be postgresql://"),
        ("postgresql://u:secret@h:port/db", "must be postgresql://"),
        ("postgresql://u:secret@h1,,h2/db", "must be postgresql://"),
        ("postgresql://u:secret@h:65536/db", "has a port above 65535"),
        ("postgresql://u:secret@h:1,h:70000/db", "has a port above 65535"),
        ("postgresql://h/db?secret", "must be postgresql://"),
        ("postgresql://h/db?password=secret", "or into PGPASSWORD"),
        ("postgresql://h/db?%70assword=secret", "or into PGPASSWORD"),
        ("postgres://u:secret@h/db", "must be sqlite:///FILE or postgresql://"),
        ("postgresql+asyncpg://u:secret@h/db", "must be sqlite:///FILE or postgresql://"),
        ("POSTGRESQL://u:secret@h/db", "must be sqlite:///FILE or postgresql://"),
        ("host=h password=secret", "must be sqlite:///FILE or postgresql://"),
        ("sqlite://u:secret@h/db", "must be sqlite:///FILE or postgresql://"),
        ("sqlite:///u:secret@h/db", "a file has no user, no password and no parameters"),
        ("sqlite:///users.db?password=secret", "a file has no user, no password and no parameters"),
        ("sqlite:///users\0.db", "must be sqlite:///FILE"),
    ],
)
def test_url_that_is_not_clear(url, fault):
    """A URL of which a part might be another is refused, with what is right, and without any part of it."""
    error = mistake(url)
    assert error.startswith("DATABASE_URL=***: ")
    assert fault in error
    assert "sec" not in error


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("postgresql://u:secret@h/db", "url has a password, and there is a password_file"),
        ("postgresql://u:@h/db", "url has a password, and there is a password_file"),
        ("postgresql://u@h/db?passfile=/run/secret", "url has a password, and there is a password_file"),
        ("sqlite:///users.db", "password_file is for PostgreSQL"),
        ("", "password_file is for PostgreSQL"),
    ],
)
def test_password_file_that_is_not_for_the_url(url, fault):
    """A password is given once, to a database that has one; the error has no part of it."""
    environ = {"DATABASE_URL": url, "DATABASE_PASSWORD_FILE": "/run/password"}
    with pytest.raises(ConfigError, match=fault) as caught:
        load(UserServiceConfig, environ=environ)
    assert "secret" not in str(caught.value)


@given(PASSWORDS)
def test_no_part_of_a_password_is_told(password):
    """With any password a URL is taken and shown without it, or refused without a word of it."""
    for url in (f"postgresql://u:{password}Q@h/db", f"postgresql://h/db?sslpassword=Q{password}"):
        try:
            config = load(UserServiceConfig, environ={"DATABASE_URL": url})
        except ConfigError as error:
            text = str(error).removeprefix("DATABASE_URL=***: ").replace("USER:PASSWORD@HOST:PORT", "")
        else:
            text = to_yaml(config) + config.database.name + repr(config) + str(config)
        assert not set("QXZ") & set(text)


def test_database_is_named_by_its_url():
    """Logs and errors name a database by its URL, without password and parameters."""
    config = DatabaseConfig(url="postgresql://ada:secret@h1:1,h2/users?sslpassword=secret")
    assert config.name == "postgresql://ada:***@h1:1,h2/users?***"
