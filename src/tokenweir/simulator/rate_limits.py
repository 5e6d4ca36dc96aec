"""Rate limits as the provider has them: token buckets that refill continuously, per workspace and class of models, and the headers that tell of them.

Requests, input tokens (cache reads do not count) and output tokens each have a bucket. Input is taken when a request starts, output when it is produced,
so the output bucket can be overdrawn and then refuses until it has refilled. Pure but for its own memory: the time is an argument.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

from tokenweir.simulator.refusals import Refusal
from tokenweir.simulator.scenario import Limits, LimitTable

_MOVING = b"".join(
    b"anthropic-ratelimit-%s-remaining: %%d\r\nanthropic-ratelimit-%s-reset: %%s\r\n" % (name, name)
    for name in (b"requests", b"input-tokens", b"output-tokens", b"tokens")
)
_FAST = b"".join(
    b"anthropic-fast-%s-limit: %%d\r\nanthropic-fast-%s-remaining: %%d\r\nanthropic-fast-%s-reset: %%s\r\n" % (name, name, name)
    for name in (b"input-tokens", b"output-tokens")
)


class Bucket:
    """Refills to `amount` within a minute."""

    __slots__ = ("_at_s", "_left", "amount")

    def __init__(self, amount: int, now_s: float) -> None:
        self.amount = amount
        self._left = float(amount)
        self._at_s = now_s

    def left(self, now_s: float) -> float:
        """What may be taken now."""
        if now_s > self._at_s:
            self._left = min(self.amount, self._left + (now_s - self._at_s) * self.amount / 60)
            self._at_s = now_s
        return self._left

    def take(self, units: float, now_s: float) -> None:
        """Take, even below zero."""
        self._left = self.left(now_s) - units

    def wait_s(self, units: float, now_s: float) -> float:
        """Until so many can be taken; a demand above the whole is waited for until the bucket is full."""
        return max(0.0, (min(units, self.amount) - self.left(now_s)) * 60 / self.amount)


class ClassLimits:
    """The three buckets of one workspace and class."""

    __slots__ = ("_fixed", "fast", "input", "output", "requests")

    def __init__(self, limits: Limits, *, fast: bool, now_s: float) -> None:
        self.fast = fast
        self.requests = Bucket(limits.requests, now_s)
        self.input = Bucket(limits.input_tokens, now_s)
        self.output = Bucket(limits.output_tokens, now_s)
        tokens = limits.input_tokens + limits.output_tokens
        amounts = {"requests": limits.requests, "input-tokens": limits.input_tokens, "output-tokens": limits.output_tokens, "tokens": tokens}
        self._fixed = "".join(f"anthropic-ratelimit-{name}-limit: {amount}\r\n" for name, amount in amounts.items()).encode()

    def admit(self, input_tokens: int, *, described: str, now_s: float) -> None:
        """Take one request and its input; raises the provider's 429 without taking anything."""
        demands = (
            ("requests", self.requests, 1, "requests per minute"),
            ("input", self.input, max(1, input_tokens), "input tokens per minute"),
            ("output", self.output, 1, "output tokens per minute"),
        )
        for _, bucket, units, resource in demands:
            if bucket.left(now_s) < units:
                wait = max(1, math.ceil(bucket.wait_s(units, now_s)))
                text = f"This request would exceed your organization's rate limit of {bucket.amount:,} {resource} ({described})."
                raise Refusal(429, "rate_limit_error", text, retry_after=wait)
        self.requests.take(1, now_s)
        self.input.take(input_tokens, now_s)

    def headers(self, *, now_s: float, wall_s: float) -> bytes:
        """The header lines of an answer. Tokens are rounded to the nearest thousand, as the provider does."""
        wait_in, wait_out = self.input.wait_s(self.input.amount, now_s), self.output.wait_s(self.output.amount, now_s)
        wait_requests = self.requests.wait_s(self.requests.amount, now_s)
        left_in, left_out = max(0, round(self.input.left(now_s), -3)), max(0, round(self.output.left(now_s), -3))
        reset_in, reset_out = _instant(wall_s + wait_in), _instant(wall_s + wait_out)
        values = (
            max(0, self.requests.left(now_s)),
            _instant(wall_s + wait_requests),
            left_in,
            reset_in,
            left_out,
            reset_out,
            left_in + left_out,
            max(reset_in, reset_out),
        )
        fast = _FAST % (self.input.amount, left_in, reset_in, self.output.amount, left_out, reset_out) if self.fast else b""
        return self._fixed + _MOVING % values + fast


class RateLimiter:
    """All buckets."""

    def __init__(self, table: LimitTable) -> None:
        self._table = table
        self._classes: dict[tuple[str, str], ClassLimits] = {}
        self._counting: dict[str, ClassLimits] = {}
        self._batching: dict[str, ClassLimits] = {}

    def limits(self, workspace: str, limit_class: str, *, fast: bool, now_s: float) -> ClassLimits:
        """The buckets of a workspace for a class of models; fast requests have their own."""
        name = f"{limit_class}-fast" if fast else limit_class
        found = self._classes.get((workspace, name))
        if found is None:
            limits = self._table.workspaces.get(workspace) or self._table.classes.get(name) or self._table.default
            found = self._classes[workspace, name] = ClassLimits(limits, fast=fast, now_s=now_s)
        return found

    def counting(self, workspace: str, *, now_s: float) -> ClassLimits:
        """The buckets of count_tokens, which are apart."""
        found = self._counting.get(workspace)
        if found is None:
            found = self._counting[workspace] = ClassLimits(Limits(requests=self._table.count_requests), fast=False, now_s=now_s)
        return found

    def batching(self, workspace: str, *, now_s: float) -> ClassLimits:
        """The buckets of the routes of batches, which are apart too."""
        found = self._batching.get(workspace)
        if found is None:
            found = self._batching[workspace] = ClassLimits(Limits(requests=self._table.batch_requests), fast=False, now_s=now_s)
        return found

    def check_queue(self, queued: int, more: int, *, described: str) -> None:
        """Refuse lines beyond those that a workspace may have waiting."""
        if queued + more > (most := self._table.batch_queued):
            text = f"This request would exceed your organization's limit of {most:,} batch requests in the processing queue ({described})."
            raise Refusal(429, "rate_limit_error", text, retry_after=60)


_seconds: dict[int, bytes] = {}


def _instant(wall_s: float) -> bytes:
    """RFC 3339 in whole seconds, rounded up; remembered, because a thousand requests share a second."""
    second = math.ceil(wall_s)
    text = _seconds.get(second)
    if text is None:
        if len(_seconds) > 256:
            _seconds.clear()
        text = _seconds[second] = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ").encode()
    return text
