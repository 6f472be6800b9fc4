"""Names and emails of users."""

import unicodedata

from services.user.users import (
    MAX_EMAIL_LENGTH,
    MAX_NAME_LENGTH,
    InvalidUserError,
    new_user,
    normalized_email,
    normalized_name,
)
from tools.fuzz.properties import check_shown


def fuzz(data: bytes) -> None:
    """What is taken is in its normal form: given again it stays as it is. The first line is the name."""
    name, _, email = data.decode("utf-8", "ignore").partition("\n")
    try:
        user = new_user(name, email)
    except InvalidUserError as error:
        assert error.violations.keys() <= {"name", "email"}
        for what in error.violations.values():
            check_shown(what)
    else:
        assert len(user.name) <= MAX_NAME_LENGTH
        assert normalized_name(user.name) == user.name == unicodedata.normalize("NFC", user.name.strip())
        assert len(user.email) <= MAX_EMAIL_LENGTH
        assert normalized_email(user.email) == user.email
        check_shown(user.email)
