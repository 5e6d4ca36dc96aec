"""The local share: what one process admits alone is a stated part of a rate, and nothing of a budget."""

from __future__ import annotations

import pytest

from metering.limit_desk import MODEL, RED, START_US, Desk, limit
from tokenweir.errors import StoreUnavailable
from tokenweir.limits.bucket import Reserved
from tokenweir.limits.limit import Action, Cycle, Rolling
from tokenweir.metering.local_share import LocalShare


def chain_of(*limits):
    desk = Desk(*limits)
    desk.close()
    return desk.book.chain(RED, MODEL, session="", now_us=START_US)


@pytest.mark.parametrize(("amount", "share", "admitted"), [(100, 25, 25), (100, 100, 100), (3, 25, 1), (1, 1, 1)])
def test_a_share_of_a_rate_and_never_less_than_one(amount, share, admitted):
    """A small rate is not shut by rounding."""
    chain, local = chain_of(limit("rate", "requests", amount, Rolling(60_000_000))), LocalShare(share)
    got = [isinstance(local.reserve(str(n), chain, [1], now_us=START_US), Reserved) for n in range(amount + 1)]
    assert sum(got) == admitted


def test_what_is_given_back_can_be_taken_again():
    """Concurrency of the local share is freed when the request ends."""
    chain, local = chain_of(limit("slots", "concurrency", 4)), LocalShare(25)
    assert isinstance(local.reserve("a", chain, [1], now_us=START_US), Reserved)
    assert not isinstance(local.reserve("b", chain, [1], now_us=START_US), Reserved)
    local.settle("a", [0], now_us=START_US)
    assert isinstance(local.reserve("b", chain, [1], now_us=START_US), Reserved)


@pytest.mark.parametrize(
    "closed", [limit("a", "spend", 5, Rolling(60_000_000)), limit("a", "requests", 5), limit("a", "tokens", 5, Cycle("day"), action=Action.QUEUE)]
)
def test_money_and_cycles_have_none(closed):
    """The failure names the limit, so that its owner knows what is shut."""
    with pytest.raises(StoreUnavailable, match=closed.name):
        LocalShare(25).reserve("a", chain_of(closed), [1], now_us=START_US)
