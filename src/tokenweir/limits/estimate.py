"""What a request will probably use, learned from what requests like it have used.

A limit that is not strict holds this instead of the ceiling: Claude Code asks for 128,000 tokens of output with every request, so holding the ceiling
would let one developer block a team. It is not exact and need not be. The rule it protects: an estimate decides only what is *held*. What is booked and
used are the provider's own counts, so an error here costs some waiting or a bounded overshoot, and is gone at settlement; hence the floats.

How: tokens of prompt for each byte of text, and tokens of output, each as the 95th percentile of a small histogram that forgets; for a key with a model;
for the model over all keys; and, before anything was learned, documented numbers. Each counts by how much it has seen. Which share of a cached prompt
is read from the cache is learned too, since it costs a tenth. Forgetting goes by requests, not by time: the same settlements give the same estimates.
Change with it: `wire/envelope.py` (the facts), `reservation.py` (what happens when an estimate was too low), bench/limits.py (how good it is).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Final

from tokenweir.usage import Usage
from tokenweir.wire.envelope import Envelope

PAIRS_MAX: Final = 20_000
"""Keys with models of which something is remembered; those that have not settled for longest are forgotten first."""
BLEND: Final = 8
"""A key's own numbers count half once it has settled this many requests, and so do a model's against the documented ones."""
CAUTION: Final = 20
"""One request in so many may use more than what is expected of prompt or output."""

PRIOR_TOKENS_PER_BYTE: Final = 1 / 3
PRIOR_OUTPUT_TOKENS: Final = 2_000
HIDDEN_BYTES: Final = 1_500
"""What the provider adds (frames, tool preambles: some 500 tokens) counts as this much text; the factor of a key learns the rest."""
IMAGE_BYTES: Final = 4_800
"""An image counts as this much text: about 1,600 tokens."""
PRIOR_REMOTE_TOKENS: Final = 10_000
"""Expected of a prompt that the body does not contain: a URL, a file, a PDF, what server tools read."""
WEB_SEARCHES: Final = 2
"""Expected of a request that may search, where it may search that often."""


class Estimator:
    """What one process has learned. Both operations take the same short time however much that is."""

    __slots__ = ("_learned",)

    def __init__(self) -> None:
        # A model over all keys is remembered under the empty key id.
        self._learned: OrderedDict[tuple[str, str], _Learned] = OrderedDict()

    def __len__(self) -> int:
        """How many keys with models, and models, it remembers."""
        return len(self._learned)

    def expect(self, key_id: str, model: str, envelope: Envelope, ceiling: Usage) -> Usage:
        """Tokens by class that the request will probably not exceed; prompt, output and searches never above those of its `ceiling`."""
        learned = self._learned
        of_model = learned.get(("", model), _NOTHING)
        of_key = learned.get((key_id, model), _NOTHING)
        text = envelope.text_bytes + envelope.images * IMAGE_BYTES + HIDDEN_BYTES
        size = _size(text)
        prompt = text * _blended(PRIOR_TOKENS_PER_BYTE, of_model.prompts[size], of_key.prompts[size])
        if envelope.remote_sources or envelope.server_tools:
            prompt = max(prompt, _blended(PRIOR_REMOTE_TOKENS, of_model.remote, of_key.remote))
        output = _blended(PRIOR_OUTPUT_TOKENS, of_model.output, of_key.output)
        prompt_tokens, output_tokens = min(int(prompt), ceiling.prompt), min(int(output), ceiling.output)
        searches = min(WEB_SEARCHES, ceiling.web_searches) if ceiling.web_searches else 0
        if not envelope.cache_ttl:
            return Usage(prompt_tokens, output=output_tokens, web_searches=searches)
        # Before anything is learned, all of it is written to the cache at the dearest time to live: so does the ceiling.
        m, k = of_model.mix_weight, of_key.mix_weight
        read = int(prompt_tokens * (m * of_model.read * (1 - k) + of_key.read * k))
        uncached = int(prompt_tokens * (m * of_model.uncached * (1 - k) + of_key.uncached * k))
        short = 1.0 if envelope.cache_ttl == "5m" else m * of_model.short * (1 - k) + of_key.short * k
        written = prompt_tokens - read - uncached
        written_5m = int(written * short)
        return Usage(uncached, written_5m, written - written_5m, read, output_tokens, web_searches=searches)

    def learn(self, key_id: str, model: str, text_bytes: int, images: int, usage: Usage) -> None:
        """Take note of an attempt whose usage is certain. `text_bytes` and `images` are those of its envelope."""
        prompt = usage.prompt
        if not prompt:
            return
        text = text_bytes + images * IMAGE_BYTES + HIDDEN_BYTES
        # Text has less than one token a byte: what is beyond came from elsewhere, and says nothing about the text.
        factor_bucket = _factor_bucket(prompt / text) if prompt <= text else -1
        token_bucket = _token_bucket(prompt) if factor_bucket < 0 else -1
        output_bucket = _token_bucket(usage.output)
        size = _size(text)
        for pair in (("", model), (key_id, model)):
            learned = self._of(pair)
            if factor_bucket >= 0:
                prompts = learned.prompts
                if prompts[size] is _UNSEEN:
                    prompts = learned.prompts = (*prompts[:size], _Histogram(_FACTORS), *prompts[size + 1 :])
                prompts[size].add(factor_bucket)
            else:
                if learned.remote is _UNSEEN:
                    learned.remote = _Histogram(_TOKENS)
                learned.remote.add(token_bucket)
            learned.output.add(output_bucket)
            if usage.uncached_input != prompt:
                learned.mix(usage, prompt)

    def _of(self, pair: tuple[str, str]) -> _Learned:
        learned = self._learned.get(pair)
        if learned is not None:
            self._learned.move_to_end(pair)
            return learned
        if len(self._learned) >= PAIRS_MAX:
            self._learned.popitem(last=False)
        learned = self._learned[pair] = _Learned(_Histogram(_TOKENS))
        return learned


# Numbers to buckets, and back: each bucket ends a fixed ratio above the one before.

_BUCKETS = 64
_FACTORS = tuple(2 ** ((bucket + 1) / 8 - 8) for bucket in range(_BUCKETS))
"""Ends of the buckets of tokens per byte: up to 1, each 9 % wide."""
_TOKENS = tuple(2 ** ((bucket + 1) / 4 + 4) for bucket in range(_BUCKETS))
"""Ends of the buckets of tokens: from 16 to 1,048,576, each 19 % wide."""


def _factor_bucket(factor: float) -> int:
    return min(_BUCKETS - 1, max(0, int(math.log2(factor) * 8 + 64)))


def _token_bucket(tokens: int) -> int:
    return min(_BUCKETS - 1, int(math.log2(tokens) * 4 - 16)) if tokens > 16 else 0


_SIZES = 5


def _size(text: int) -> int:
    """Small and large prompts have factors of their own, for what is added to them is the same: up to 4 kB, 16, 64, 256, and beyond."""
    return min(_SIZES - 1, max(0, (text.bit_length() - 11) // 2))


class _Histogram:
    """Where the 95th percentile of recent numbers lies, in constant time for each number."""

    __slots__ = ("_above", "_at", "_counts", "_ends", "_total", "high", "weight")

    WINDOW = 200
    """Below 256, so that a count fits a byte. When so many have been seen, each counts half from then on."""

    def __init__(self, ends: tuple[float, ...]) -> None:
        self._ends = ends
        self._counts = bytearray(_BUCKETS)
        self._total = 0
        self._at = 0
        self._above = 0
        """How many lie in buckets above `_at`."""
        self.high = 0.0
        """The end of the bucket above which lies no more than one number in `CAUTION`."""
        self.weight = 0.0
        """How much that is to be believed, from 0 to 1."""

    def add(self, bucket: int) -> None:
        counts = self._counts
        counts[bucket] += 1
        self._total += 1
        if bucket > self._at:
            self._above += 1
        if self._total >= self.WINDOW:
            self._halve()
        at, above, allowed = self._at, self._above, self._total // CAUTION
        while above > allowed:
            at += 1
            above -= counts[at]
        while at and above + counts[at] <= allowed:
            above += counts[at]
            at -= 1
        self._at, self._above = at, above
        self.high = self._ends[at]
        self.weight = self._total / (self._total + BLEND)

    def _halve(self) -> None:
        """From the top, and what halving cuts off goes to the next bucket below: rare high numbers become rarer, and do not vanish together."""
        counts, rest = self._counts, 0
        for bucket in range(_BUCKETS - 1, -1, -1):
            counts[bucket], rest = divmod(counts[bucket] + rest, 2)
        self._total = sum(counts)
        self._above = sum(counts[self._at + 1 :])


_UNSEEN = _Histogram(_TOKENS)
"""Stands for every histogram that has seen nothing; never added to."""


class _Learned:
    """What is known of a key with a model, or of a model."""

    __slots__ = ("_mixed", "mix_weight", "output", "prompts", "read", "remote", "short", "uncached")

    DECAY = 0.97

    def __init__(self, output: _Histogram) -> None:
        self.prompts: tuple[_Histogram, ...] = (_UNSEEN,) * _SIZES
        """Tokens per byte, by size of the prompt."""
        self.remote = _UNSEEN
        """Tokens of prompts that were larger than their text."""
        self.output = output
        self.read = self.uncached = 0.0
        """Shares of those prompts that used the cache."""
        self.short = 0.0
        """Share of what was written that was written for 5 minutes."""
        self.mix_weight = 0.0
        """How much the shares are to be believed, from 0 to 1."""
        self._mixed = (0.0, 0.0, 0.0, 0.0, 0.0)

    def mix(self, usage: Usage, prompt: int) -> None:
        decay = self.DECAY
        count, total, read, uncached, short = self._mixed
        count = count * decay + 1
        total = total * decay + prompt
        read = read * decay + usage.cache_read
        uncached = uncached * decay + usage.uncached_input
        short = short * decay + usage.cache_write_5m
        self._mixed = (count, total, read, uncached, short)
        self.read = read / total
        self.uncached = uncached / total
        written = total - read - uncached
        self.short = short / written if written > 0 else 0.0
        self.mix_weight = count / (count + BLEND)


_NOTHING = _Learned(_UNSEEN)


def _blended(prior: float, of_model: _Histogram, of_key: _Histogram) -> float:
    known = prior + of_model.weight * (of_model.high - prior)
    return known + of_key.weight * (of_key.high - known)
