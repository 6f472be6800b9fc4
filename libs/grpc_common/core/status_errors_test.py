import math

import grpc
import pytest
from google.rpc import error_details_pb2

from grpc_common import (
    already_exists,
    failed_precondition,
    invalid_argument,
    not_found,
    permission_denied,
    unavailable,
)

PUSHBACK = "grpc-retry-pushback-ms"


@pytest.mark.parametrize(
    ("make", "code"),
    [(not_found, grpc.StatusCode.NOT_FOUND), (already_exists, grpc.StatusCode.ALREADY_EXISTS)],
)
def test_errors_about_a_resource(make, code):
    """A ResourceInfo names the resource, where one is given."""
    bare = make("no such user")
    assert (bare.code, bare.message, bare.details, bare.metadata) == (code, "no such user", (), ())
    (info,) = make("no such user", resource_type="user.User", resource_name="7").details
    assert info == error_details_pb2.ResourceInfo(resource_type="user.User", resource_name="7")
    assert make("x", resource_name="7").details == (error_details_pb2.ResourceInfo(resource_name="7"),)


def test_failed_precondition_names_each_subject():
    """Text and PreconditionFailure have what is wrong with each subject."""
    error = failed_precondition({"account/7": "is closed", "terms": "are not accepted"})
    assert (error.code, error.message) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "account/7: is closed; terms: are not accepted",
    )
    (failure,) = error.details
    assert [(each.subject, each.description) for each in failure.violations] == [
        ("account/7", "is closed"),
        ("terms", "are not accepted"),
    ]


def test_permission_denied_has_a_reason_for_programs():
    """An ErrorInfo has reason and domain, where they are given."""
    bare = permission_denied("not yours")
    assert (bare.code, bare.message, bare.details) == (grpc.StatusCode.PERMISSION_DENIED, "not yours", ())
    (info,) = permission_denied("not yours", reason="CLOSED", domain="user.example.com").details
    assert info == error_details_pb2.ErrorInfo(reason="CLOSED", domain="user.example.com")


@pytest.mark.parametrize(
    ("seconds", "milliseconds"),
    [
        (0, 0),
        (-0.0, 0),
        (1e-9, 1),  # not at once
        (0.0004, 1),
        (0.0015, 2),
        (0.069, 69),  # times 1000 it is a little more
        (0.289, 289),  # and a little less
        (0.5, 500),
        (1, 1000),
        (1.9999, 2000),
        (90, 90_000),
        (2_147_483.647, 2**31 - 1),
    ],
)
def test_time_to_come_back(seconds, milliseconds):
    """RetryInfo and gRPC's own trailer have the same time, to the millisecond."""
    error = unavailable("come back", retry_after=seconds)
    assert (error.code, error.message) == (grpc.StatusCode.UNAVAILABLE, "come back")
    assert error.metadata == ((PUSHBACK, str(milliseconds)),)
    (info,) = error.details
    assert info.retry_delay.ToMilliseconds() == milliseconds
    assert info.retry_delay.ToNanoseconds() == milliseconds * 1_000_000


def test_unavailable_without_a_time():
    """Without a time the caller decides when to come back."""
    error = unavailable("come back")
    assert (error.code, error.details, error.metadata) == (grpc.StatusCode.UNAVAILABLE, (), ())


@pytest.mark.parametrize("seconds", [-1, -1e-9, math.nan, math.inf, -math.inf, 2_147_484, 1e300, 10**400])
def test_time_that_is_none(seconds):
    """A time that no client could wait is refused, and the message has the bounds."""
    with pytest.raises(ValueError, match="take 0 to 2147483"):
        unavailable("come back", retry_after=seconds)


@pytest.mark.parametrize("seconds", ["1", True, 1j, b""])
def test_time_that_is_no_number(seconds):
    """What is no number of seconds is refused."""
    with pytest.raises(TypeError, match="number of seconds"):
        unavailable("come back", retry_after=seconds)


ODD = "file \udcff\0\r\n\U0001f600"


@pytest.mark.parametrize(
    "error",
    [
        lambda: invalid_argument({ODD: ODD}),
        lambda: failed_precondition({ODD: ODD}),
        lambda: not_found(ODD, resource_type=ODD, resource_name=ODD),
        lambda: already_exists(ODD, resource_name=ODD),
        lambda: permission_denied(ODD, reason=ODD, domain=ODD),
        lambda: unavailable(ODD, retry_after=1),
    ],
)
def test_any_text_can_be_sent(error):
    """Half a surrogate pair, as in a file's name that is not UTF-8, is replaced and not a bug."""
    made = error()
    status = made.to_status()
    assert status.code is made.code
    assert "file ?" in status.details
    assert all(b"file ?" in each.SerializeToString() for each in made.details[: made.code.value[0] != 14])
