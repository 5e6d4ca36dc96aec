"""Tokens: unique, uniform, recognizable, and checked without a store."""

from __future__ import annotations

import copy
import hmac
import json
import os
import pickle
import random
import re
import string
import traceback
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir import key_tokens
from tokenweir.key_tokens import Secret, check, digest, digester, hint, key_part, mint

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
entropy = st.binary(min_size=32, max_size=64)
parts = st.text(ALPHABET, min_size=12, max_size=12)


def test_a_hundred_thousand_tokens_are_unique_match_the_published_pattern_and_are_uniform_at_every_random_position():
    rng = random.Random(20261122)
    tokens = [mint(key_part(rng.randbytes(32)), rng.randbytes(32)) for _ in range(100_000)]
    assert len(set(tokens)) == len(tokens)
    assert len({token[3:15] for token in tokens}) == len(tokens)
    published = re.compile(key_tokens.PATTERN)
    assert all(published.match(token) and len(token) == key_tokens.TOKEN_LENGTH and check(token) for token in tokens)
    expected = len(tokens) / 62
    # The checksum's first digit is not uniform by nature (62^6 is 13 times 2^32); the key part and the secret must be.
    columns = list(zip(*tokens, strict=True))
    for position in [*range(3, 15), *range(16, 46)]:
        counts = Counter(columns[position])
        chi_squared = sum((counts[digit] - expected) ** 2 / expected for digit in ALPHABET)
        assert chi_squared < 130, position  # 61 degrees of freedom: above 130 once in 10^6 per position, and the seed is fixed


def test_the_published_pattern_and_the_example_in_the_documentation_are_right():
    text = (Path(__file__).parents[1] / "docs" / "KEYS.md").read_text("utf-8")
    assert f"`{key_tokens.PATTERN}`" in text
    (example,) = set(re.findall(r"^    (tw_\w+)$", text, re.MULTILINE))
    assert check(example)


def test_the_secret_has_at_least_160_random_bits():
    assert 62**key_tokens.SECRET_LENGTH >= 2**160


def test_the_bias_of_the_reduction_is_negligible():
    assert 62**key_tokens.SECRET_LENGTH / 2 ** (8 * key_tokens.ENTROPY_BYTES) < 2**-77


def test_a_token_does_not_look_like_one_of_the_provider():
    assert not mint("a" * 12, os.urandom(32)).startswith("sk-")


def test_every_single_character_change_is_rejected():
    rng = random.Random(7)
    for _ in range(5):
        token = mint(key_part(rng.randbytes(32)), rng.randbytes(32))
        for position, was in enumerate(token):
            for other in string.printable + "é\x00\uff41":
                if other != was:
                    assert not check(token[:position] + other + token[position + 1 :]), (position, other)


def test_every_swap_of_neighbours_every_cut_and_every_addition_is_rejected():
    token = mint("Zk3v9QxT1aBc", random.Random(3).randbytes(32))
    for i in range(len(token) - 1):
        swapped = token[:i] + token[i + 1] + token[i] + token[i + 2 :]
        assert swapped == token or not check(swapped)
        assert not check(token[: i + 1])
    for extra in ("\n", " ", "A", "\x00"):
        assert not check(token + extra)
        assert not check(extra + token)
    assert not check("")


@given(st.text(max_size=80))
def test_no_text_makes_the_check_fail_with_an_exception(text: str):
    assert check(text) is False


@given(parts, entropy)
def test_what_is_minted_checks_and_names_its_key(part: str, random_bytes: bytes):
    token = mint(part, random_bytes)
    assert check(token)
    assert token.startswith(f"tw_{part}_")


@pytest.mark.parametrize("part", ["", "short", "x" * 13, "with-hyphen1", "newline12345\n"[:12] + "\n", "ünïcödeabcde"])
def test_a_part_that_could_not_be_read_back_is_refused(part: str):
    with pytest.raises(ValueError, match="cannot name a key"):
        mint(part, bytes(32))


def test_too_little_randomness_is_refused():
    with pytest.raises(ValueError, match="32 random bytes"):
        mint("a" * 12, bytes(31))


@given(st.text(ALPHABET + "_", max_size=100), st.binary(min_size=1, max_size=100))
def test_the_fast_digest_is_hmac_sha256_for_every_pepper(token: str, pepper: bytes):
    assert digester(pepper)(token) == digest(token, pepper) == hmac.digest(pepper, token.encode(), "sha256")


def test_another_pepper_gives_another_digest():
    assert digest("tw_x", b"1" * 32) != digest("tw_x", b"2" * 32)


@given(parts, entropy)
def test_a_hint_holds_nothing_of_the_secret(part: str, random_bytes: bytes):
    token = mint(part, random_bytes)
    assert hint(token) == f"tw_…{part[-4:]}" == key_tokens.hint_of_part(part)


CANARY = "tw_canary-7f3a"


@pytest.mark.parametrize(
    "show", [repr, str, "{}".format, "{!r:>40}".format, lambda s: f"{s} {s!r} {s!s:>9}", lambda s: str([s]), lambda s: str({"k": s})]
)
def test_a_secret_never_shows_its_text(show):
    assert CANARY not in show(Secret(CANARY))


@pytest.mark.parametrize("carry", [pickle.dumps, copy.copy, copy.deepcopy, json.dumps, msgspec.json.encode, msgspec.msgpack.encode, vars, hash])
def test_a_secret_refuses_to_be_carried_away(carry):
    with pytest.raises(TypeError) as refusal:
        carry(Secret(CANARY))
    assert CANARY not in "".join(traceback.format_exception(refusal.value))


def test_a_secret_is_revealed_on_request_and_compared_by_content():
    assert Secret(CANARY).reveal() == CANARY
    assert Secret(CANARY) == Secret(CANARY)
    assert Secret(CANARY) != Secret("other")
    assert Secret(CANARY) != CANARY
