"""One simulator for all tests of a module."""

from __future__ import annotations

from typing import Any

import pytest

from simulation import Answer, post_to, running_simulator
from tokenweir.app import open_rate_card
from tokenweir.pricing.rate_card import RateCard
from tokenweir.settings import Settings


@pytest.fixture(scope="module")
def simulator(tmp_path_factory):
    with running_simulator(tmp_path_factory.mktemp("simulator")) as found:
        yield found


@pytest.fixture
def post(simulator):
    def send(body: Any = None, **more: Any) -> Answer:
        return post_to(simulator, body, **more)

    return send


@pytest.fixture
def line_of(simulator):
    """The journal's line of an answer."""

    def find(answer: Answer) -> dict[str, Any]:
        wanted = answer.headers["request-id"]
        found = [line for line in simulator.journal() if line["request_id"] == wanted]
        assert len(found) == 1, "an attempt has exactly one line"
        return found[0]

    return find


@pytest.fixture(scope="session")
def card() -> RateCard:
    return open_rate_card(Settings())
