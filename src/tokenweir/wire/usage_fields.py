"""From the provider's usage object to what is billed: every field read with suspicion, none of them lost silently.

The rules (docs/ARCHITECTURE.md, metering): a count that is negative, a fraction, a string or absurdly large is left out and flagged, never credited; an
explicit 0 is not the same as nothing said; a numeric field that this version does not know is flagged, so that a new kind of charge is noticed on its first
day. Top-level usage is not always the bill: `iterations` are, where they exist. Change together with `messages.py` (how a stream is merged) and
`pricing/rating.py` (each segment is priced by its own model and its own prompt size).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from tokenweir.usage import Metered, Segment, Usage

JsonObject: TypeAlias = dict[str, Any]

COUNT_MAX = 1_000_000_000
"""No attempt can use more of anything; a larger number is an error of the sender, and would not be money but noise."""
ITERATIONS_MAX = 1_000
NAME_CHARS_MAX = 64
FLAGS_MAX = 32

FLAG_BAD_FIELD = "bad_usage_field"
FLAG_UNKNOWN_FIELD = "unknown_usage_field"
FLAG_UNKNOWN_ITERATION = "unknown_iteration"
FLAG_ITERATIONS_MISMATCH = "iterations_mismatch"
FLAG_UNBILLED_REFUSAL = "unbilled_refusal"
FLAG_FALLBACK_CREDIT = "fallback_credit"
"""The provider reprices a retry after a refusal and does not say by how much: to be corrected at reconciliation."""

COUNTS = frozenset({"input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"})
_WRITES = frozenset({"ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens"})
DETAILS: dict[str, frozenset[str]] = {
    "cache_creation": _WRITES,
    "output_tokens_details": frozenset({"thinking_tokens"}),
    "server_tool_use": frozenset({"web_search_requests", "web_fetch_requests", "code_execution_requests"}),
}
_WORDS = ("service_tier", "speed", "inference_geo")
KNOWN = COUNTS | DETAILS.keys() | {*_WORDS, "iterations", "fallback_credit"}
_KNOWN_OF_ITERATION = COUNTS | {"cache_creation", "output_tokens_details", "server_tool_use", "type", "model", *_WORDS}

_ADDED = frozenset({"compaction", "advisor_message"})
"""Iterations whose tokens the top level leaves out."""
_ANSWERING = frozenset({"message", "fallback_message"})


def read_metered(usage: JsonObject, *, model: str, empty_refusal: bool = False) -> Metered:
    """What a usage object says, and what of it is billed. `model` is the one the answer names."""
    flags: list[str] = []
    top = _read_counts(usage, "", flags)
    _note_unknown(usage, KNOWN, "", flags)
    service_tier, speed, inference_geo = (_word(usage, name, flags) for name in _WORDS)
    if usage.get("fallback_credit") is not None:
        _flag(flags, FLAG_FALLBACK_CREDIT)
    segments: tuple[Segment, ...] = (Segment("message", model, top),)
    if usage.get("iterations"):
        segments, model = _read_iterations(usage, top, model, flags)
    if empty_refusal:
        segments = ()
        _flag(flags, FLAG_UNBILLED_REFUSAL)
    return Metered(model, top, segments, service_tier, speed, inference_geo, tuple(flags))


def is_bad(flags: tuple[str, ...]) -> bool:
    """Whether a field could not be believed: then the reading is not exact, whatever else is known."""
    return any(flag.startswith(FLAG_BAD_FIELD) for flag in flags)


def is_count(value: object) -> bool:
    """A number of tokens or uses that can be believed."""
    return type(value) is int and 0 <= value <= COUNT_MAX


# One object of counts: the top level, or one iteration.


def _read_counts(usage: JsonObject, path: str, flags: list[str]) -> Usage:
    get = usage.get
    output = _count(get("output_tokens"), path, "output_tokens", flags)
    write_5m, write_1h = _read_writes(usage, path, flags)
    thinking = web_searches = web_fetches = code_executions = 0
    details = get("output_tokens_details")
    if details is not None:
        thinking = _count(_part(details, "thinking_tokens"), path, "thinking_tokens", flags)
        if thinking > output:
            _flag(flags, f"{FLAG_BAD_FIELD}:{path}thinking_tokens")
            thinking = output
    tools = get("server_tool_use")
    if tools is not None:
        web_searches = _count(_part(tools, "web_search_requests"), path, "web_search_requests", flags)
        web_fetches = _count(_part(tools, "web_fetch_requests"), path, "web_fetch_requests", flags)
        code_executions = _count(_part(tools, "code_execution_requests"), path, "code_execution_requests", flags)
    return Usage(
        _count(get("input_tokens"), path, "input_tokens", flags),
        write_5m,
        write_1h,
        _count(get("cache_read_input_tokens"), path, "cache_read_input_tokens", flags),
        output,
        thinking,
        web_searches,
        web_fetches,
        code_executions,
    )


def _read_writes(usage: JsonObject, path: str, flags: list[str]) -> tuple[int, int]:
    """Cache writes for 5 minutes and for an hour: the split says how many were for an hour, the total decides what is left for 5 minutes."""
    split = usage.get("cache_creation")
    write_1h = _count(_part(split, "ephemeral_1h_input_tokens"), path, "ephemeral_1h_input_tokens", flags)
    write_5m = _count(_part(split, "ephemeral_5m_input_tokens"), path, "ephemeral_5m_input_tokens", flags)
    total = usage.get("cache_creation_input_tokens")
    if total is None:
        return write_5m, write_1h
    if not is_count(total):
        _flag(flags, f"{FLAG_BAD_FIELD}:{path}cache_creation_input_tokens")
        return write_5m, write_1h
    return max(0, total - write_1h), write_1h


def _count(value: object, path: str, name: str, flags: list[str]) -> int:
    if value is None:
        return 0
    if type(value) is int and 0 <= value <= COUNT_MAX:
        return value
    _flag(flags, f"{FLAG_BAD_FIELD}:{path}{name}")
    return 0


def _part(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, dict) else None


def _word(usage: JsonObject, name: str, flags: list[str]) -> str:
    value = usage.get(name)
    if value is None:
        return ""
    if isinstance(value, str) and len(value) <= NAME_CHARS_MAX and (not value or value.isprintable()):
        return value
    _flag(flags, f"{FLAG_BAD_FIELD}:{name}")
    return ""


def _flag(flags: list[str], flag: str) -> None:
    if flag not in flags and len(flags) < FLAGS_MAX:
        flags.append(flag)


def _note_unknown(usage: JsonObject, known: frozenset[str], path: str, flags: list[str]) -> None:
    """Flag every number under a name that is not known, at any depth; and a known object that is none."""
    for name, value in usage.items():
        details = DETAILS.get(name)
        if details is not None and isinstance(value, dict):
            for part, number in value.items():
                if part not in details:
                    _note_numbers(number, f"{path}{name}.{part}", flags, depth=0)
        elif name not in known:
            _note_numbers(value, path + name, flags, depth=0)
        elif details is not None and value is not None:
            _flag(flags, f"{FLAG_BAD_FIELD}:{path}{name}")


def _note_numbers(value: object, path: str, flags: list[str], *, depth: int) -> None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        _flag(flags, f"{FLAG_UNKNOWN_FIELD}:{_safe(path)}")
    elif depth < 8 and len(flags) < FLAGS_MAX:
        if isinstance(value, dict):
            for name, inner in value.items():
                _note_numbers(inner, f"{path}.{name}", flags, depth=depth + 1)
        elif isinstance(value, list):
            for inner in value[:ITERATIONS_MAX]:
                _note_numbers(inner, path, flags, depth=depth + 1)


def _safe(name: str) -> str:
    """A name from outside, as a flag may show it."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "?" for c in name[:NAME_CHARS_MAX])


# Iterations: what was run, by which model.


def _read_iterations(usage: JsonObject, top: Usage, model: str, flags: list[str]) -> tuple[tuple[Segment, ...], str]:
    """The segments to bill, and the model that answered in the end."""
    entries = usage["iterations"]
    if not isinstance(entries, list) or len(entries) > ITERATIONS_MAX or not all(isinstance(entry, dict) for entry in entries):
        _flag(flags, f"{FLAG_BAD_FIELD}:iterations")
        return (Segment("message", model, top),), model
    read = [_read_iteration(entry, top, model, flags) for entry in entries]
    serving = next((segment.model for segment in reversed(read) if segment.kind in _ANSWERING), model)
    last_fallback = max((index for index, segment in enumerate(read) if segment.kind == "fallback_message"), default=-1)
    # An attempt that declined before it said anything is listed and not billed: another model then answered in its place.
    declined = {
        index
        for index, segment in enumerate(read)
        if index < last_fallback and segment.kind in _ANSWERING and segment.usage.output == 0 and segment.model != serving
    }
    if declined and model not in {read[index].model for index in declined}:
        # The answer itself names who answered; a stream names the model that it began with, which is then the one that declined.
        serving = model
        read[last_fallback] = msgspec.structs.replace(read[last_fallback], model=model)
    billed = [segment for index, segment in enumerate(read) if index not in declined]
    answered = [segment.usage for segment in billed if segment.kind not in _ADDED]
    if not answered or _tokens(top) not in (_tokens(*answered), _tokens(answered[-1])):
        _flag(flags, FLAG_ITERATIONS_MISMATCH)
        if sum(map(_weight, answered)) <= _weight(top):
            billed = [Segment("message", serving, top), *(segment for segment in billed if segment.kind in _ADDED)]
    return _with_attributes(billed, top), serving


def _read_iteration(entry: JsonObject, top: Usage, model: str, flags: list[str]) -> Segment:
    path = "iterations."
    usage = _read_counts(entry, path, flags)
    _note_unknown(entry, _KNOWN_OF_ITERATION, path, flags)
    writes = usage.cache_write_5m + usage.cache_write_1h
    top_writes = top.cache_write_5m + top.cache_write_1h
    if writes and top_writes and not isinstance(entry.get("cache_creation"), dict):
        write_1h = (writes * top.cache_write_1h + top_writes // 2) // top_writes
        usage = Usage(usage.uncached_input, writes - write_1h, write_1h, usage.cache_read, usage.output, usage.thinking, usage.web_searches)
    kind, own = entry.get("type"), entry.get("model")
    if not isinstance(kind, str) or (kind not in _ANSWERING and kind not in _ADDED):
        kind = _safe(kind) if isinstance(kind, str) else "?"
        _flag(flags, f"{FLAG_UNKNOWN_ITERATION}:{kind}")
    if own is not None and not (isinstance(own, str) and 0 < len(own) <= 256 and own.isprintable()):
        _flag(flags, f"{FLAG_BAD_FIELD}:{path}model")
        own = None
    if own is None and kind == "advisor_message":
        _flag(flags, f"{FLAG_BAD_FIELD}:{path}model")  # an advisor without a name is priced like the executor, and not believed
    return Segment(kind, own or model, usage)


def _tokens(*usages: Usage) -> tuple[int, int, int, int]:
    return (
        sum(usage.uncached_input for usage in usages),
        sum(usage.cache_write_5m + usage.cache_write_1h for usage in usages),
        sum(usage.cache_read for usage in usages),
        sum(usage.output for usage in usages),
    )


def _weight(usage: Usage) -> int:
    """Twenty times the price of `usage` in units of an input token, by the proportions every rate card of the provider has (reads at most a tenth)."""
    return 20 * usage.uncached_input + 25 * usage.cache_write_5m + 40 * usage.cache_write_1h + 2 * usage.cache_read + 100 * usage.output


def _with_attributes(segments: list[Segment], top: Usage) -> tuple[Segment, ...]:
    """Server tools and thinking are stated once, for the whole: they go with the last segment that answered, so that nothing is counted twice."""
    last = max((index for index, segment in enumerate(segments) if segment.kind not in _ADDED), default=len(segments) - 1)
    return tuple(_with(segment, top if index == last else _NO_TOOLS) for index, segment in enumerate(segments))


_NO_TOOLS = Usage()


def _with(segment: Segment, stated: Usage) -> Segment:
    usage = msgspec.structs.replace(
        segment.usage,
        thinking=min(stated.thinking, segment.usage.output),
        web_searches=stated.web_searches,
        web_fetches=stated.web_fetches,
        code_executions=stated.code_executions,
    )
    return Segment(segment.kind, segment.model, usage)
