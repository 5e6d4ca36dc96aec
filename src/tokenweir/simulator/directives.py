"""Directives: what a request, or a rule of the scenario, may ask of the simulator.

Three places carry them, the later over the earlier: the scenario's rules, `metadata.user_id` starting with `sim:` (`sim:cut=120;output=40`, because a
gateway forwards bodies but not foreign headers), and `x-sim-…` headers (`x-sim-cut: 120`). A name or value that makes no sense is refused, so that a
mistyped fault never passes as a clean answer. Every field is documented in docs/SIMULATOR.md, which a test checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import msgspec

NEVER = -1
"""As a duration: until the client leaves. As a position: not at all."""
PREFIX = "sim:"
HEADER = b"x-sim-"

Count = Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]
Duration = Annotated[float, msgspec.Meta(ge=-1, le=86_400_000)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Position = Annotated[int, msgspec.Meta(ge=-1)]


class Directives(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """All that can be asked. The default of each field is "behave"."""

    # Refusals
    refuse: str = ""
    message: str = ""
    retry_after: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    should_retry: bool | None = None

    # The answer
    output: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] | None = None
    thinking: Count | None = None
    searches: Annotated[int, msgspec.Meta(ge=0, le=100)] | None = None
    tool: str = ""
    stop: Literal["", "end_turn", "max_tokens", "stop_sequence", "tool_use", "pause_turn", "refusal", "model_context_window_exceeded"] = ""
    refusal: Literal["", "empty", "thinking", "midstream"] = ""
    compaction: Count = 0
    advisor: str = ""
    fallback: str = ""
    tier: str = ""
    geo: str = ""
    speed: str = ""

    # Pace
    ttfb: Duration | None = None
    pace: Duration | None = None
    stall_head: Duration = 0
    stall: Duration = 0
    stall_after: Count = 1
    slow_head: Duration = 0
    chunk: Count = 0
    interim: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0

    # Batches
    batch_delay: Duration | None = None
    batch_canceling: Duration | None = None
    batch_expires: Annotated[float, msgspec.Meta(ge=0, le=86_400_000)] | None = None
    batch_errors: Share = 0
    batch_error: str = "overloaded_error"
    batch_hangs: Share = 0
    line_delay: Duration = 0

    # Breaking off
    cut: Position = NEVER
    cut_head: bool = False
    cut_by: Literal["rst", "fin"] = "rst"
    error_after: Position = NEVER
    error: str = "overloaded_error"

    # Spoiling
    truncate: Count | None = None
    content_length: int = 0
    trailing: Count = 0
    future: bool = False
    unknown_usage: bool = False
    two_deltas: bool = False
    bare_delta: bool = False
    no_stop: bool = False
    no_usage: bool = False


NAMES = Directives.__struct_fields__
PLAIN = Directives()
BATCH_PREFIX = "batch_"
"""Directives of a whole batch; any of its lines may carry them."""
_NAMES = frozenset(NAMES)


class BadDirective(ValueError):
    """A directive that makes no sense; its text is the message of the 400 that answers it."""


def split_directives(text: str) -> dict[str, str]:
    """The pairs of `cut=120;output=40`; a name alone means `true`."""
    pairs: dict[str, str] = {}
    for part in text.split(";"):
        if part.strip():
            name, _, value = part.partition("=")
            pairs[name.strip().replace("-", "_")] = value.strip() or "true"
    return pairs


def header_directives(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The pairs of `x-sim-NAME: value` headers."""
    return {name[6:].decode("latin-1").replace("-", "_"): value.decode("latin-1") for name, value in headers if name.startswith(HEADER)}


def build(*layers: Mapping[str, Any]) -> Directives:
    """The directives of all layers, later over earlier. Raises BadDirective."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update(layer)
    if not merged:
        return PLAIN
    unknown = sorted(set(merged) - _NAMES)
    if unknown:
        raise BadDirective(f"unknown simulator directive {unknown[0]!r}; known are {', '.join(NAMES)}")
    try:
        return msgspec.convert(merged, Directives, strict=False)
    except msgspec.ValidationError as error:
        raise BadDirective(f"simulator directive: {error}") from None
