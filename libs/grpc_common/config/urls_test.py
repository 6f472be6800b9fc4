import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from grpc_common.config.urls import mask_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("", ""),
        ("x://db", "x://db"),
        ("postgresql://ada@h/users", "postgresql://ada@h/users"),
        ("postgresql://ada:secret@h/users", "postgresql://ada:***@h/users"),
        ("postgresql://:secret@h:5432/users", "postgresql://:***@h:5432/users"),
        ("postgresql://ada:se%2Fcret@h1:1,h2:2/users", "postgresql://ada:***@h1:1,h2:2/users"),
        ("POSTGRESQL://ada:secret@[2001:db8::1]:5432/users", "POSTGRESQL://ada:***@[2001:db8::1]:5432/users"),
        (
            "postgresql://ada:secret@%2Frun%2Fpostgresql/users",
            "postgresql://ada:***@%2Frun%2Fpostgresql/users",
        ),
        ("postgresql+asyncpg://ada:secret@h/a%20b", "postgresql+asyncpg://ada:***@h/a%20b"),
        ("postgresql:///users?host=/run/postgresql&password=secret", "postgresql:///users?***"),
        ("postgresql://h?sslpassword=secret", "postgresql://h?***"),
        ("postgresql://ada%3Asecret@h/users", "postgresql://***@h/users"),
        ("https://a.example/x/y?token=secret", "https://a.example/x/y?***"),
        ("sqlite:////data/bücher.db", "sqlite:////data/bücher.db"),
    ],
)
def test_url_without_its_secrets(url, shown):
    """What is certain is shown: scheme, user, hosts, ports, path."""
    assert mask_url(url) == shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:1234/secret@h/db", "postgresql://***"),
        ("postgresql://u:1234#secret@h/db", "postgresql://***"),
        ("postgresql://u:1234?secret@h/db", "postgresql://***"),
        ("postgresql://u:1234", "postgresql://u:1234"),
        ("postgresql://u:123456", "postgresql://***"),
        ("postgresql://u:secret", "postgresql://***"),
        ("postgresql://u:a@secret@h/db", "postgresql://***"),
        ("postgresql://u:a@h1,v:secret@h2/db", "postgresql://***"),
        ("postgresql://h/db;password=secret", "postgresql://***"),
        ("postgresql://h/db password=secret", "postgresql://***"),
        ("postgresql://h/db\n:secret@", "postgresql://***"),
        ("postgresql://h/db#secret", "postgresql://***"),
        ("sqlserver://h;password=secret", "sqlserver://***"),
        ("jdbc:postgresql://u:secret@h/db", "***"),
        ("u:secret@h/db", "***"),
        ("host=h password=secret", "***"),
        ("secret", "***"),
        ("://secret", "***"),
    ],
)
def test_what_is_not_understood_is_not_shown(url, shown):
    """Where a part may be another one, such as half of a password, nothing but the scheme is shown."""
    assert mask_url(url) == shown


# Letters that nothing else in the URLs has, and all that has a meaning in one.
SECRETS = st.text("QXZ0123456789:/?#[]@!$&'()*+,;=%. \n\t\\\u212a\uff20\x00")


@given(SECRETS)
@example("1234/Q")
def test_no_part_of_a_password_is_shown(password):
    """Whatever is between the user and the host, broken or not, no letter of it is shown."""
    urls = ("postgresql://u:{}Q@h:1/db", "postgresql://u:{}Q@h1,h2/db?a=b", "u:{}Q@h")
    for url in [each.format(password) for each in urls]:
        shown = mask_url(url)
        assert not set("QXZ") & set(shown)
        assert mask_url(shown) in {shown, f"{shown}***"}


@given(SECRETS, SECRETS)
def test_no_parameter_is_shown(name, value):
    """A parameter may be a password under any name, so that none is shown."""
    assert not set("QXZ") & set(mask_url(f"postgresql://u@h/db?{name}={value}"))


@given(st.text())
def test_any_text(text):
    """Masking fails for no text, and shows no line break."""
    assert "\n" not in mask_url(text)
