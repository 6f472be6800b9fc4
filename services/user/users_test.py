import time
import unicodedata

import pytest
from email_validator import EmailNotValidError, validate_email
from hypothesis import given
from hypothesis import strategies as st

from services.user.users import InvalidUserError, new_user, normalized_email, normalized_name

printable = st.characters(exclude_categories=["C", "Z", "M"])


@given(st.text(printable, min_size=1, max_size=200))
def test_normalizing_a_name_twice_changes_nothing(text):
    """What is stored is what a later request with the stored name would store."""
    name = normalized_name(text)
    assert normalized_name(name) == name
    assert unicodedata.is_normalized("NFC", name)


@given(
    st.text(printable, min_size=1, max_size=20),
    st.sampled_from(
        ["\x00", "\n", "\x1b", "\x7f", "\x9b", "\u2028", "\u202e", "\u2066", "\u200f", "\ufeff", "\U000e0041"]
    ),
)
def test_control_characters_are_refused_anywhere(text, control):
    """A control character inside a name is refused, and the error shows its number only."""
    with pytest.raises(ValueError, match=rf"U\+{ord(control):04X}") as caught:
        normalized_name(text + control + text)
    assert str(caught.value).isprintable()


@given(st.text(max_size=1000))
def test_any_text_is_a_name_or_an_error(text):
    """No text makes the check fail in another way, and what passes is within bounds."""
    try:
        name = normalized_name(text)
    except ValueError as error:
        assert str(error).isprintable()
    else:
        assert 1 <= len(name) <= 200
        assert len(name.encode()) <= 800
        assert name == name.strip()


@pytest.mark.parametrize(
    ("text", "name"),
    [("  Ada ", "Ada"), ("Jose\u0301", "José"), ("李小龍", "李小龍"), ("مه\u200cرو", "مه\u200cرو")],
)
def test_names_are_normalized(text, name):
    """White space at the ends goes, and composed characters are one."""
    assert normalized_name(text) == name


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must not be empty"),
        ("   ", "must not be empty"),
        ("\u200d", "must not be empty"),
        ("x" * 201, "201 characters; at most 200"),
        ("😀" * 251, "1004 bytes; at most 1000"),
    ],
)
def test_bad_length_of_a_name(text, reason):
    """A name has something to see, at most 200 characters, and as it is given at most 1000 bytes."""
    with pytest.raises(ValueError, match=reason):
        normalized_name(text)


def test_longest_names():
    """200 characters are allowed in every script, and before normalization."""
    for character in ("x", "字", "😀", "e\u0301"):
        assert len(normalized_name(character * 200)) == 200


def test_hostile_name_is_refused_at_once():
    """A megabyte of combining characters, whose normalization would take hours, is not normalized."""
    with pytest.raises(ValueError, match="at most 1000 are allowed"):
        normalized_name("a" + "\u0301\u0316" * 300_000)


@given(st.emails())
def test_normalizing_an_email_twice_changes_nothing(text):
    """An accepted email is its own normal form."""
    try:
        email = normalized_email(text)
    except ValueError:
        return  # a domain that is reserved, say
    assert normalized_email(email) == email


@pytest.mark.parametrize(
    "text", ["", "ada", "ada@", "@example.com", "a b@example.com", "ada@ex\nample.com", "a@b@c"]
)
def test_not_an_email(text):
    """What is no address is refused with a reason that is safe to print."""
    with pytest.raises(ValueError, match=r".") as caught:
        normalized_email(text)
    assert str(caught.value).isprintable()


@given(
    local=st.one_of(
        st.from_regex(r"[A-Za-z0-9_+.-]{0,70}", fullmatch=True),
        st.sampled_from(["Postmaster", "ABUSE", "x" * 64, "x" * 65, "a..b", ".a"]),
        st.text(max_size=5),
    ),
    domain=st.one_of(
        st.from_regex(r"[A-Za-z0-9.-]{0,110}", fullmatch=True),
        st.from_regex(r"([A-Za-z0-9-]{1,10}\.){1,3}[A-Za-z]{2,5}", fullmatch=True),
        st.sampled_from(
            ["Example.COM", "xn--bcher-kva.example.com", "bücher.example.com", "a.local", "[1.2.3.4]"]
        ),
        st.text(max_size=5),
    ),
)
def test_plain_emails_are_validated_as_all_others(local, domain):
    """That most emails take a shorter way changes neither what is accepted nor what it becomes."""
    text = f"{local}@{domain}"
    try:
        expected = validate_email(text.strip(), check_deliverability=False).normalized
    except EmailNotValidError as error:
        expected = str(error)
    try:
        found = normalized_email(text)
    except ValueError as error:
        found = str(error)
    assert found == expected


def test_emails_differ_by_more_than_case():
    """Two spellings of an address have one key; the spelling is kept."""
    ada, shouted = new_user("Ada", "ada@example.com"), new_user("Ada", "ADA@Example.COM")
    assert ada.email_key == shouted.email_key
    assert shouted.email == "ADA@example.com"


def test_every_violation_is_named():
    """One error tells all that is wrong with a user."""
    with pytest.raises(InvalidUserError) as caught:
        new_user("", "x" * 10_000)
    assert set(caught.value.violations) == {"name", "email"}


def test_ids_sort_by_creation():
    """Ids are UUIDs of version 7, each later than the one before, within a millisecond too."""
    ids = [new_user("Ada", "ada@example.com").id for _ in range(1000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert {user_id.version for user_id in ids} == {7}


def test_ids_go_on_when_the_clock_is_set_back(monkeypatch):
    """Ids made after the clock was set back by an hour still sort after those before it, and are unique."""
    before = [new_user("Ada", "ada@example.com").id for _ in range(100)]
    true_time = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: true_time() - 3600 * 10**9)
    after = [new_user("Ada", "ada@example.com").id for _ in range(5000)]
    ids = before + after
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
