"""The provider's error envelope."""

from __future__ import annotations

import json

import pytest

from tokenweir.simulator.refusals import NAMED, Refusal, envelope, named


def test_the_envelope_is_exact():
    refusal = Refusal(429, "rate_limit_error", "slow down", code="ramp_limit_exceeded")
    assert json.loads(refusal.body("req_1")) == {
        "type": "error",
        "error": {"type": "rate_limit_error", "message": "slow down", "details": {"error_code": "ramp_limit_exceeded"}},
        "request_id": "req_1",
    }
    assert envelope("api_error", "x") == {"type": "error", "error": {"type": "api_error", "message": "x"}}


@pytest.mark.parametrize("status", sorted({row[0] for row in NAMED.values()}))
def test_a_status_alone_names_an_error_of_that_status(status):
    assert named(str(status)).status == status


def test_retry_after_can_be_changed_and_taken_away():
    assert named("429").retry_after == 1
    assert named("429", retry_after=9).retry_after == 9
    assert named("429", retry_after=-1).retry_after is None
    assert named("spend_cap").retry_after is None


def test_an_unknown_name_is_said_to_be_unknown():
    with pytest.raises(ValueError, match="no refusal is called 'teapot'"):
        named("teapot")
