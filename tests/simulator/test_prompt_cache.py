"""What caching does to a prompt's tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.simulator.prompt_cache import LOOK_BACK, MESSAGES, SYSTEM, TOOLS, Block, PromptCache

PLAIN = ("", "", "")


def row(*parts, level=MESSAGES):
    """Blocks of 1,000 tokens from texts; `text|5m` carries a breakpoint."""
    return [Block(level, 1_000, text.partition("|")[2], text.partition("|")[0]) for text in parts]


def split(cache, blocks, *, now=0.0, space="red/opus", settings=PLAIN, minimum=512, store=True):
    found = cache.split(blocks, space=space, settings=settings, minimum=minimum, now_s=now)
    if store:
        cache.store(found, started_s=now)
    return found.uncached, found.write_5m, found.write_1h, found.read


def test_the_first_request_writes_and_the_second_reads_the_same_prefix():
    cache = PromptCache()
    assert split(cache, row("a", "b|5m", "c")) == (1_000, 2_000, 0, 0)
    assert split(cache, row("a", "b|5m", "d")) == (1_000, 0, 0, 2_000)


def test_a_longer_conversation_reads_what_was_written_and_writes_only_what_is_new():
    cache = PromptCache()
    split(cache, row("a", "b|5m"))
    assert split(cache, row("a", "b", "c", "d|5m")) == (0, 2_000, 0, 2_000)


def test_a_prefix_cannot_be_read_before_the_answer_of_its_writer_began():
    cache = PromptCache()
    assert split(cache, row("a|5m"), store=False) == (0, 1_000, 0, 0)
    assert split(cache, row("a|5m")) == (0, 1_000, 0, 0), "parallel first requests all pay the write"
    assert split(cache, row("a|5m")) == (0, 0, 0, 1_000)


@pytest.mark.parametrize(("ttl", "life"), [("5m", 300), ("1h", 3_600)])
def test_a_prefix_lives_from_the_start_of_the_request_and_each_read_begins_its_life_anew(ttl, life):
    cache = PromptCache()
    split(cache, row(f"a|{ttl}"), now=0)
    assert split(cache, row(f"a|{ttl}"), now=life - 1)[3] == 1_000
    assert split(cache, row(f"a|{ttl}"), now=2 * life - 2)[3] == 1_000
    assert split(cache, row(f"a|{ttl}"), now=3 * life)[3] == 0


def test_hour_breakpoints_before_minute_breakpoints_split_the_writes():
    assert split(PromptCache(), row("a|1h", "b", "c|5m", "d")) == (1_000, 2_000, 1_000, 0)


def test_the_look_back_reaches_twenty_blocks_and_no_further():
    cache = PromptCache()
    split(cache, row("a|5m"))
    near = [f"n{n}" for n in range(LOOK_BACK - 2)]
    assert split(cache, row("a", *near, "z|5m"), store=False)[3] == 1_000
    assert split(cache, row("a", *near, "y", "z|5m"), store=False)[3] == 0


def test_a_prefix_below_the_minimum_is_not_cached_and_no_error():
    cache = PromptCache()
    assert split(cache, row("a|5m", "b"), minimum=1_001) == (2_000, 0, 0, 0)
    assert split(cache, row("a|5m", "b"), minimum=1_001) == (2_000, 0, 0, 0)
    assert split(cache, row("a|5m", "b|5m"), minimum=1_001) == (0, 2_000, 0, 0), "the part before a small breakpoint belongs to the next one"


def test_workspaces_and_models_do_not_share():
    cache = PromptCache()
    split(cache, row("a|5m"), space="red/opus")
    assert split(cache, row("a|5m"), space="blue/opus")[3] == 0
    assert split(cache, row("a|5m"), space="red/sonnet")[3] == 0


@pytest.mark.parametrize(
    ("changed", "tools", "system", "messages"),
    [(("x", "", ""), 0, 0, 0), (("", "x", ""), 1_000, 0, 0), (("", "", "x"), 1_000, 1_000, 0)],
    ids=["all", "from system on", "messages only"],
)
def test_a_setting_invalidates_its_level_and_those_after_it(changed, tools, system, messages):
    cache = PromptCache()
    blocks = [*row("t|5m", level=TOOLS), *row("s|5m", level=SYSTEM), *row("m|5m", level=MESSAGES)]
    split(cache, blocks)
    assert split(cache, blocks, settings=changed, store=False)[3] == tools + system + messages


def test_an_earlier_change_invalidates_everything_after_it():
    cache = PromptCache()
    split(cache, row("a|5m", "b|5m"))
    assert split(cache, row("A|5m", "b|5m"))[3] == 0


def test_expired_prefixes_are_forgotten_in_time():
    cache = PromptCache()
    for number in range(10_001):
        split(cache, row(f"{number}|5m"), now=float(number))
    assert len(cache) < 5_000


ROWS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["", "", "", "5m", "1h"]), st.integers(0, 900)), min_size=1, max_size=30)


@given(st.lists(st.tuples(ROWS, st.integers(0, 400)), min_size=1, max_size=6))
def test_whatever_is_cached_the_classes_sum_to_the_prompt(requests):
    """Uncached, written and read tokens are disjoint and complete, for any prompts in any order."""
    cache, now = PromptCache(), 0.0
    for parts, later in requests:
        now += later
        blocks = [Block(MESSAGES, tokens, ttl, text) for text, ttl, tokens in parts]
        found = cache.split(blocks, space="s", settings=PLAIN, minimum=512, now_s=now)
        cache.store(found, started_s=now)
        assert found.prompt == sum(block.tokens for block in blocks)
        assert min(found.uncached, found.write_5m, found.write_1h, found.read) >= 0
        again = cache.split(blocks, space="s", settings=PLAIN, minimum=512, now_s=now)
        assert (again.write_5m, again.write_1h) == (0, 0), "the same prompt at once reads all that was written"
        assert again.read == found.read + found.write_5m + found.write_1h
