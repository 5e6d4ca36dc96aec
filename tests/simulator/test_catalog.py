"""The models that are known, and where their facts come from."""

from __future__ import annotations

import pytest

from tokenweir.simulator.catalog import MODELS, Catalog


def test_every_model_the_rate_card_calls_current_can_be_used(card):
    catalog = Catalog(card)
    missing = [facts.model for facts in card.models() if facts.lifecycle != "retired" and catalog.find(facts.model) is None]
    assert missing == []


@pytest.mark.parametrize("row", MODELS, ids=lambda row: row.id)
def test_the_table_and_the_rate_card_do_not_contradict_each_other(card, row):
    name = card.resolve(row.id)
    if name is None or row.lifecycle == "retired":
        return
    facts = card.model(name)
    assert (row.context, row.output_max) == (facts.context_tokens, facts.output_tokens_max)
    assert facts.cache_tokens_min in (None, row.cache_minimum)


def test_ids_are_found_with_their_date(card):
    catalog = Catalog(card)
    found = catalog.find("claude-haiku-4-5-20251001")
    assert found is not None
    assert found is catalog.find("claude-haiku-4-5")
    assert catalog.find("claude-haiku-4-5-2025") is None


def test_a_further_model_behaves_like_the_one_it_names(card):
    catalog = Catalog(card, [("claude-new-9", "claude-opus-5-5")])
    assert catalog.find("claude-new-9").limit_class == "opus-5-5"
    with pytest.raises(ValueError, match="does not know"):
        Catalog(card, [("a", "b")])


def test_retired_models_are_not_listed(card):
    assert all(model.lifecycle != "retired" for model in Catalog(card).active())
