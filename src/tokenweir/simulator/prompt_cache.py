"""Prompt caching that really works: prefixes by hash, look-back, lifetimes, workspaces.

A prompt is a row of blocks (tools, then system, then messages). A breakpoint writes the prefix that ends there; a later prompt reads the longest written
prefix that ends at one of its breakpoints or up to 20 blocks before one. What decides a prefix beside its blocks is mixed in at the level where the
provider says it matters (speed and web search at system, tool choice and thinking at messages). A prefix can be read once the answer of its writer began.
Pure but for its own memory: the time is an argument. Change together with `intake.py`, which makes the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import msgspec

LOOK_BACK = 20
BREAKPOINTS_MAX = 4
TOOLS, SYSTEM, MESSAGES = 0, 1, 2
_SWEEP_EVERY = 10_000


class Block(msgspec.Struct, frozen=True, gc=False):
    """One block of a prompt."""

    level: int
    tokens: int
    ttl: str
    """`5m` or `1h` where a breakpoint stands, else empty."""
    content: Any
    """What is hashed; the breakpoint itself is not part of it."""


class Split(msgspec.Struct, frozen=True):
    """A prompt's tokens by what caching did to them, and the prefixes to store once the answer begins."""

    uncached: int
    write_5m: int = 0
    write_1h: int = 0
    read: int = 0
    writes: tuple[tuple[bytes, str], ...] = ()

    @property
    def prompt(self) -> int:
        """All of it."""
        return self.uncached + self.write_5m + self.write_1h + self.read


class PromptCache:
    """The cached prefixes of all workspaces."""

    def __init__(self, *, short_s: float = 300.0, long_s: float = 3_600.0) -> None:
        self._lives = {"5m": short_s, "1h": long_s}
        self._entries: dict[bytes, tuple[float, str]] = {}
        self._stored = 0

    def __len__(self) -> int:
        return len(self._entries)

    def split(self, blocks: Sequence[Block], *, space: str, settings: Sequence[str], minimum: int, now_s: float) -> Split:
        """How a prompt is billed now. `space` is workspace and model; `settings` is what is mixed in at each level."""
        marks = [index for index, block in enumerate(blocks) if block.ttl]
        total = sum(block.tokens for block in blocks)
        if not marks:
            return Split(uncached=total)
        digests, sums = _prefixes(blocks[: marks[-1] + 1], space, settings)
        hit = self._longest_hit(marks, digests, now_s)
        done = sums[hit] if hit >= 0 else 0
        read, written, writes = done, {"5m": 0, "1h": 0}, []
        for mark in marks:
            if sums[mark] < minimum:
                continue
            ttl = blocks[mark].ttl
            if mark > hit:
                written[ttl] += sums[mark] - done
                done = sums[mark]
            writes.append((digests[mark], ttl))
        return Split(uncached=total - done, write_5m=written["5m"], write_1h=written["1h"], read=read, writes=tuple(writes))

    def store(self, split: Split, *, started_s: float) -> None:
        """The answer began: its prefixes can be read from now on. Lifetimes count from the start of the request."""
        for digest, ttl in split.writes:
            old = self._entries.get(digest)
            expires = started_s + self._lives[ttl]
            if old is None or old[0] < expires:
                self._entries[digest] = (expires, ttl)
            self._stored += 1
            if self._stored % _SWEEP_EVERY == 0:
                self._entries = {key: entry for key, entry in self._entries.items() if entry[0] > started_s}

    def _longest_hit(self, marks: Sequence[int], digests: Sequence[bytes], now_s: float) -> int:
        """The last block of the longest readable prefix, whose life begins anew; -1 if there is none."""
        best = -1
        for mark in reversed(marks):
            for index in range(mark, max(mark - LOOK_BACK, best), -1):
                entry = self._entries.get(digests[index])
                if entry is not None and entry[0] > now_s:
                    best = max(best, index)
                    break
        if best >= 0:
            ttl = self._entries[digests[best]][1]
            self._entries[digests[best]] = (now_s + self._lives[ttl], ttl)
        return best


def _prefixes(blocks: Sequence[Block], space: str, settings: Sequence[str]) -> tuple[list[bytes], list[int]]:
    """For each block, the hash and the token count of the prefix that ends with it."""
    state = blake2b(space.encode(), digest_size=16)
    digests, sums, level, total = [], [], -1, 0
    for block in blocks:
        while level < block.level:
            level += 1
            state.update(b"\x00level" + settings[level].encode())
        state.update(b"\x00block" + msgspec.json.encode(block.content))
        total += block.tokens
        digests.append(state.copy().digest())
        sums.append(total)
    return digests, sums
