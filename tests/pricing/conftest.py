from __future__ import annotations

from importlib import resources

import pytest

from tokenweir.pricing.rate_card import RateCard, parse_rate_card


@pytest.fixture(scope="session")
def card_text() -> str:
    return (resources.files("tokenweir.pricing") / "rates.json").read_text("utf-8")


@pytest.fixture(scope="session")
def card(card_text: str) -> RateCard:
    return parse_rate_card(card_text)
