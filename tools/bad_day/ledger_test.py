"""The books hold what the service is held to: who was asked for, who was acknowledged, what came late."""

import asyncio

import pytest
from user import user_service_pb2 as pb

from tools.bad_day.ledger import Ledger

ADA = pb.User(id="1", name="ada", email="ada@example.com")


async def told(user: pb.User) -> pb.User:
    """Answer as the service does."""
    return user


async def test_a_user_is_attempted_before_there_is_an_answer():
    """So one whose create was answered by nobody may be there at the end."""
    ledger = Ledger()
    answer = asyncio.get_running_loop().create_future()
    asked = asyncio.create_task(ledger.created("ada", answer))
    await asyncio.sleep(0)
    assert (ledger.attempted, ledger.acknowledged) == ({"ada"}, {})
    answer.set_result(ADA)
    await asked
    assert ledger.acknowledged == {"ada": ADA}
    assert ledger.untrue == []


@pytest.mark.parametrize(
    "second",
    [
        pb.User(id="2", name="ada", email="ada@example.com"),
        pb.User(id="1", name="ada", email="other@example.com"),
    ],
)
async def test_a_user_that_is_made_again_as_another_is_a_contradiction(second):
    """One key is one user, who stays the same; that one is held to the first answer."""
    ledger = Ledger()
    await ledger.created("ada", told(ADA))
    await ledger.created("ada", told(ADA))
    assert ledger.untrue == []
    await ledger.created("ada", told(second))
    assert ledger.untrue == [f"ada was made as 1, and then as {second.id}, ada"]
    assert ledger.acknowledged == {"ada": ADA}


async def test_a_user_that_nobody_asked_for_is_a_contradiction():
    """The answer to a create has the name that was asked for."""
    ledger = Ledger()
    await ledger.created("grace", told(ADA))
    assert ledger.untrue == ["grace was made as 1, and then as 1, ada"]


async def test_a_status_after_the_deadline_is_late():
    """Also a good one; what is in time is not, and none of them runs on."""
    ledger = Ledger()
    async with ledger.call("dns", "GetUser", 100):
        assert len(ledger.running) == 1
    async with ledger.call("dns", "ListUsers", -1):
        pass
    assert [made.method for made in ledger.late] == ["ListUsers"]
    assert ledger.succeeded == {"dns": 2}
    assert not ledger.running
    assert len(ledger.take()) == 2
    assert ledger.take() == []
