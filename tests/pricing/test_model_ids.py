from __future__ import annotations

import pytest

SPELLINGS = {
    "claude-haiku-4-5": "claude-haiku-4-5",
    "claude-haiku-4-5-20251001": "claude-haiku-4-5",
    "claude-haiku-4.5": "claude-haiku-4-5",
    "claude-4.5-haiku": "claude-haiku-4-5",
    "claude-haiku-4-5@20251001": "claude-haiku-4-5",
    "claude-opus-4": "claude-opus-4-0",
    "claude-opus-4-20250514": "claude-opus-4-0",
    "claude-opus-4-1-20250805": "claude-opus-4-1",
    "claude-sonnet-4@20250514": "claude-sonnet-4-0",
    "claude-sonnet-4-5-20250929[1m]": "claude-sonnet-4-5",
    "claude-opus-4-6[1m]": "claude-opus-4-6",
    "claude-opus-4-6-20260205": "claude-opus-4-6",
    "claude-opus-5@default": "claude-opus-5",
    "claude-opus-5-latest": "claude-opus-5",
    "claude-opus-5-2026-07-01": "claude-opus-5",
    "claude-opus-5-5": "claude-opus-5-5",
    "claude-3-5-haiku-latest": "claude-3-5-haiku",
    "claude-3-7-sonnet-20250219": "claude-3-7-sonnet",
    "anthropic/claude-opus-4.5": "claude-opus-4-5",
    "anthropic.claude-opus-4-6-v1": "claude-opus-4-6",
    "anthropic.claude-sonnet-4-5-20250929-v1:0": "claude-sonnet-4-5",
    "us.anthropic.claude-sonnet-4-5-20250929-v1:0": "claude-sonnet-4-5",
    "global.anthropic.claude-opus-5-v1:0": "claude-opus-5",
    "anthropic.claude-3-haiku-20240307-v1:0:200k": "claude-3-haiku",
    "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-opus-4-6-v1": "claude-opus-4-6",
    "bedrock/anthropic.claude-opus-5-v1:0": "claude-opus-5",
    "vertex_ai/claude-sonnet-5@default": "claude-sonnet-5",
    " Claude-Fable-5-2 ": "claude-fable-5-2",
}


@pytest.mark.parametrize(("spelling", "canonical"), SPELLINGS.items())
def test_a_known_spelling_leads_to_its_model(card, spelling, canonical):
    assert card.resolve(spelling) == canonical


@pytest.mark.parametrize(
    "stranger",
    [
        "",
        "claude",
        "claude-opus-5-9",
        "claude-opus-55",
        "claude-haiku-6",
        "claude-opus-5-preview",
        "claude-mythos-preview",
        "my-claude-opus-5",
        "fast/claude-opus-4-6",
        "gpt-5",
        "claude-opus-5[large]",
        "claude-opus-5-1234567",
        "x" * 100_000,
    ],
)
def test_a_model_is_never_taken_for_a_cousin_that_it_resembles(card, stranger):
    assert card.resolve(stranger) is None


def test_every_name_in_the_card_resolves_with_every_decoration(card):
    for facts in card.models():
        for name in (facts.model, *facts.aliases):
            for spelling in (name, f"{name}-20260101", f"{name}@default", f"{name}[1m]", f"{name}-latest", f"eu.anthropic.{name}-v1:0", name.upper()):
                assert card.resolve(spelling) == facts.model, spelling
