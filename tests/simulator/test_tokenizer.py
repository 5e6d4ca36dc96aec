"""Counting is deterministic and additive, and prose has exactly the tokens it says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.simulator.tokenizer import DOCUMENT_TOKENS, IMAGE_TOKENS, PROSE_TOKENS, count_content, count_text, cut_prose, make_prose

PROSE = make_prose(1)


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("a b c", 3), ("ØØØ", 2), ("\ud800", 1)])
def test_four_bytes_are_a_token_and_a_word_is_at_least_one(text, tokens):
    assert count_text(text) == tokens


@given(st.integers(0, 300_000), st.integers(0, 200_000))
def test_prose_of_n_words_is_n_tokens_from_any_start(start, tokens):
    text = cut_prose(PROSE, start, tokens)
    assert len(text) == 4 * tokens
    assert count_text(text[:-1]) == tokens


def test_prose_is_made_of_letters_and_spaces_and_differs_by_seed():
    assert len(PROSE) == 4 * PROSE_TOKENS
    assert PROSE.replace(" ", "").isalpha()
    assert make_prose(1) == PROSE
    assert make_prose(2) != PROSE


@pytest.mark.parametrize(
    ("block", "tokens"),
    [
        ({"type": "text", "text": "abcd"}, 1),
        ({"type": "image", "source": {"data": "A" * 9_999}}, IMAGE_TOKENS),
        ({"type": "document", "source": {"type": "base64", "data": "A" * 9_999}}, DOCUMENT_TOKENS),
        ({"type": "document", "source": {"type": "text", "data": "abcd"}}, 9),
        ({"type": "tool_result", "tool_use_id": "x" * 99, "content": "abcd"}, 7),
        ({"type": "tool_result", "content": [{"type": "text", "text": "abcd"}, {"type": "image"}]}, 7 + IMAGE_TOKENS),
        ({"type": "thinking", "thinking": "abcd", "signature": "x" * 999}, 1),
    ],
)
def test_blocks_count_what_they_say_and_never_their_base64(block, tokens):
    assert count_content(block) == tokens
