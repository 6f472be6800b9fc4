import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.user.users import InvalidUserError, new_user, normalized_email, normalized_name

printable = st.characters(exclude_categories=["C", "Z"])


@given(st.text(printable, min_size=1, max_size=200))
def test_normalizing_a_name_twice_changes_nothing(text):
    """What is stored is what a later request with the stored name would store."""
    name = normalized_name(text)
    assert normalized_name(name) == name
    assert unicodedata.is_normalized("NFC", name)


@given(
    st.text(printable, min_size=1, max_size=20),
    st.sampled_from(["\x00", "\n", "\x1b", "\x7f", "\x9b", "\u2028"]),
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
        assert name == name.strip()


@pytest.mark.parametrize(("text", "name"), [("  Ada ", "Ada"), ("Jose\u0301", "José"), ("李小龍", "李小龍")])
def test_names_are_normalized(text, name):
    """White space at the ends goes, and composed characters are one."""
    assert normalized_name(text) == name


@pytest.mark.parametrize("text", ["", "   ", "x" * 201, "x" * 10_000])
def test_bad_length_of_a_name(text):
    """A name has 1 to 200 characters."""
    with pytest.raises(ValueError, match=r"must not be empty|at most 200"):
        normalized_name(text)


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
