import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.user.paging import page_size, parse_token, token_after


@given(st.uuids())
def test_token_round_trip(user_id):
    """A token leads back to the id that it was made of."""
    assert parse_token(token_after(user_id)) == user_id


def test_no_token_is_the_first_page():
    """An empty token means the beginning."""
    assert parse_token("") is None


@given(st.one_of(st.text(min_size=1), st.text("ABCDwxyz0189-_=", min_size=20, max_size=26)))
def test_forged_tokens_are_refused(token):
    """Only the one spelling that the service gives is a token."""
    try:
        user_id = parse_token(token)
    except ValueError as error:
        assert str(error) == "is not the next-page-token of an earlier call"
    else:
        assert token_after(user_id) == token


@pytest.mark.parametrize("token", ["?", "AAAA", str(uuid.uuid7()), token_after(uuid.uuid7())[:-1], "é" * 24])
def test_bad_tokens(token):
    """An id, half a token and plain nonsense are refused."""
    with pytest.raises(ValueError, match="next-page-token"):
        parse_token(token)


@pytest.mark.parametrize(
    ("requested", "size"), [(0, 50), (1, 1), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)]
)
def test_page_size(requested, size):
    """0 is the default and the maximum is never passed, as the .proto says."""
    assert page_size(requested) == size


def test_negative_page_size():
    """A negative size is the caller's mistake."""
    with pytest.raises(ValueError, match="negative"):
        page_size(-1)
