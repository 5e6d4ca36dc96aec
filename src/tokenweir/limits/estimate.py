"""What a request will probably use, learned from what requests like it have used.

A limit that is not strict holds this instead of the ceiling: Claude Code asks for 128,000 tokens of output with every request, so holding the ceiling
would let one developer block a team. It is not exact and need not be. The rule it protects: an estimate decides only what is *held*. What is booked and
used are the provider's own counts, so an error here costs some waiting or a bounded overshoot, and is gone at settlement; hence the floats.

How: tokens of prompt for each byte of text, and tokens of output, each as the 95th percentile of a small histogram that forgets; for a key with a model;
for the model over all keys; and, before anything was learned, documented numbers. Each counts by how much it has seen. Which share of a cached prompt
is read from the cache is learned too, since it costs a tenth. Forgetting goes by requests, not by time: the same settlements give the same estimates.
Change with it: `wire/envelope.py` (the facts), `extension.py` (what happens when an estimate was too low), bench/limits.py (how good it is).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from typing import Final

from tokenweir.usage import Usage
from tokenweir.wire.envelope import Envelope

PAIRS_MAX: Final = 20_000
"""Keys with models of which something is remembered; those that have not settled for longest are forgotten first."""
NEWCOMERS: Final = 8
"""When so many are remembered, one newcomer in eight takes a place: making one anew for each of more keys would cost more than it tells."""
BLEND: Final = 8
"""A key's own numbers count half once it has settled this many requests, and so do a model's against the documented ones."""
KNOWN: Final = 64
"""A key that has settled this many requests with a model is known: from then on about one in four is looked at, which costs a quarter."""
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

    __slots__ = ("_learned", "_newcomers")

    def __init__(self) -> None:
        # A model over all keys is remembered under the empty key id.
        self._learned: OrderedDict[tuple[str, str], _Learned] = OrderedDict()
        self._newcomers = 0

    def __len__(self) -> int:
        """How many keys with models, and models, it remembers."""
        return len(self._learned)

    def expect(self, key_id: str, model: str, envelope: Envelope, ceiling: Usage) -> Usage:
        """Tokens by class that the request will probably not exceed; prompt, output and searches never above those of its `ceiling`."""
        learned = self._learned
        of_model = learned.get(("", model), _NOTHING)
        of_key = learned.get((key_id, model), _NOTHING)
        text = envelope.text_bytes + envelope.images * IMAGE_BYTES + HIDDEN_BYTES
        sort, prior = bisect_left(_SIZES, text), PRIOR_TOKENS_PER_BYTE
        if envelope.remote_sources or envelope.server_tools:
            sort, prior = sort + _REMOTE, max(prior, PRIOR_REMOTE_TOKENS / text)
        prompt = text * _blended(prior, of_model.prompts[sort], of_key.prompts[sort])
        output = min(int(_blended(PRIOR_OUTPUT_TOKENS, of_model.output, of_key.output)), ceiling.output)
        tokens = min(int(prompt), ceiling.prompt)
        searches = min(WEB_SEARCHES, ceiling.web_searches)
        if not envelope.cache_ttl:
            return Usage(tokens, output=output, web_searches=searches)
        # Of a cached prompt nothing is known at first: then all of it is written to the cache, at the dearest time to live, as in the ceiling.
        k, m = of_key.mix_weight, of_model.mix_weight
        m *= 1 - k
        read = int(tokens * (m * of_model.read + k * of_key.read))
        uncached = int(tokens * (m * of_model.uncached + k * of_key.uncached))
        written = written_5m = tokens - read - uncached
        if envelope.cache_ttl == "1h":
            written_5m = min(written, int(tokens * (m * of_model.written_5m + k * of_key.written_5m)))
        return Usage(uncached, written_5m, written - written_5m, read, output, web_searches=searches)

    def learn(self, key_id: str, model: str, text_bytes: int, images: int, usage: Usage, *, remote: bool = False) -> None:
        """Take note of an attempt whose usage is certain: its envelope's `text_bytes`, `images`, and whether it had remote sources or server tools."""
        uncached = usage.uncached_input
        prompt = uncached + usage.cache_write_5m + usage.cache_write_1h + usage.cache_read
        if not prompt:
            return
        of_key = self._of_key((key_id, model))
        if of_key is None:
            return
        of_key.settled += 1
        # Multiples of an odd number, so that no rhythm in what a key does decides what is seen of it.
        if of_key.settled > KNOWN and of_key.settled * 567 & 768:
            return
        text = text_bytes + images * IMAGE_BYTES + HIDDEN_BYTES
        sort, ends = bisect_left(_SIZES, text), _FACTORS
        # Text has less than one token a byte: what is beyond came from elsewhere, and says nothing about text.
        if remote or prompt > text:
            sort, ends = sort + _REMOTE, _REMOTE_FACTORS
        prompt_bucket = bisect_left(ends, prompt / text)
        output_bucket = bisect_left(_TOKENS, usage.output)
        # What is said of a model is for keys that are new to it, so it comes from many keys: from a known one only now and then.
        for learned in (of_key,) if of_key.settled > KNOWN and of_key.settled & 7 else (of_key, self._of(("", model))):
            if learned.prompts[sort] is _UNSEEN:
                learned.prompts = (*learned.prompts[:sort], _Histogram(ends), *learned.prompts[sort + 1 :])
            learned.prompts[sort].add(prompt_bucket)
            learned.output.add(output_bucket)
            if uncached != prompt:
                learned.mix(uncached / prompt, usage.cache_write_5m / prompt, usage.cache_read / prompt)

    def _of_key(self, pair: tuple[str, str]) -> _Learned | None:
        """What is remembered of a key with a model; None for a newcomer whose turn it is not."""
        if pair not in self._learned and len(self._learned) >= PAIRS_MAX:
            self._newcomers += 1
            if self._newcomers % NEWCOMERS:
                return None
        return self._of(pair)

    def _of(self, pair: tuple[str, str]) -> _Learned:
        learned = self._learned.get(pair)
        if learned is not None:
            self._learned.move_to_end(pair)
            return learned
        if len(self._learned) >= PAIRS_MAX:
            self._learned.popitem(last=False)
        learned = self._learned[pair] = _Learned(_Histogram(_TOKENS))
        return learned


_SIZES = (4_096, 16_384, 65_536, 262_144)
"""Prompts up to so many bytes, and larger ones, have factors of their own: what the provider adds weighs less in a larger one."""
_REMOTE = len(_SIZES) + 1

# Each bucket ends a fixed ratio above the one before; the last one has no end, and counts as this much.
_BUCKETS = 64
_FACTORS = tuple(2 ** ((bucket + 1) / 8 - 8) for bucket in range(_BUCKETS - 1))
"""Tokens per byte up to 1, in steps of 9 %."""
_REMOTE_FACTORS = tuple(2 ** ((bucket + 1) / 4 - 8) for bucket in range(_BUCKETS - 1))
"""Tokens per byte up to some 200, in steps of 19 %."""
_TOKENS = tuple(2 ** ((bucket + 1) / 4 + 4) for bucket in range(_BUCKETS - 1))
"""Tokens from 16 to 1,048,576, in steps of 19 %."""


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
        total = self._total = self._total + 1
        self.weight = total / (total + BLEND)
        at = self._at
        if bucket > at:
            self._above += 1
        if total >= self.WINDOW:
            total = self._halve()
        above, allowed = self._above, total // CAUTION
        if above <= allowed and (not at or above + counts[at] > allowed) and total > 1:
            return
        while above > allowed:
            at += 1
            above -= counts[at]
        while at and above + counts[at] <= allowed:
            above += counts[at]
            at -= 1
        self._at, self._above = at, above
        self.high = self._ends[min(at, _BUCKETS - 2)]

    def _halve(self) -> int:
        """From the top, and what halving cuts off goes to the next bucket below: rare high numbers become rarer, and do not vanish together."""
        counts, rest = self._counts, 0
        for bucket in range(_BUCKETS - 1, -1, -1):
            counts[bucket], rest = divmod(counts[bucket] + rest, 2)
        self._total = sum(counts)
        self._above = sum(counts[self._at + 1 :])
        return self._total


_UNSEEN = _Histogram(_TOKENS)
"""Stands for every histogram that has seen nothing; never added to."""


class _Learned:
    """What is known of a key with a model, or of a model."""

    __slots__ = ("_mixed", "mix_weight", "output", "prompts", "read", "settled", "uncached", "written_5m")

    MIX_WINDOW = 32

    def __init__(self, output: _Histogram) -> None:
        self.settled = 0
        self.prompts = (_UNSEEN,) * (2 * _REMOTE)
        """Tokens per byte of text, by the size of the text; from `_REMOTE` on of prompts that are not all in the body."""
        self.output = output
        self.uncached = self.written_5m = self.read = 0.0
        """Mean shares of the prompts that used the cache; what is missing from 1 was written for an hour."""
        self.mix_weight = 0.0
        """How much the shares are to be believed, from 0 to 1."""
        self._mixed = 0

    def mix(self, uncached: float, written_5m: float, read: float) -> None:
        if self._mixed < self.MIX_WINDOW:
            self._mixed += 1
            self.mix_weight = self._mixed / (self._mixed + BLEND)
        rate = 1 / self._mixed
        self.uncached += (uncached - self.uncached) * rate
        self.written_5m += (written_5m - self.written_5m) * rate
        self.read += (read - self.read) * rate


_NOTHING = _Learned(_UNSEEN)


def _blended(prior: float, of_model: _Histogram, of_key: _Histogram) -> float:
    known = prior + of_model.weight * (of_model.high - prior)
    return known + of_key.weight * (of_key.high - known)
