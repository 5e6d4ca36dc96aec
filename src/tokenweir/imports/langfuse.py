"""Observations of Langfuse, exported from its pages or to blob storage (`observations_v2/`, older `observations/`), as CSV or JSON.

What they mean: only observations of type GENERATION are calls; `usage_details` is a map whose keys the instrumentation chose. Keys that we know are read,
a key with a count that we do not know refuses the row, because it may be billed; `input` is without the cache by Langfuse's own rule, and `total` shows
when an instrumentation did not keep it. Times are UTC. `cost_details` is not used. Change with it: docs/IMPORTS.md.
"""

from __future__ import annotations

from typing import Any, Final

from tokenweir.imports.fields import (
    FLAG_CACHE_UNSAID,
    Row,
    count,
    is_claude,
    listed,
    metered,
    moment,
    part,
    plain_model,
    provider_ids,
    split_prompt,
    text,
)
from tokenweir.ledger.imported import ImportedCall
from tokenweir.ledger.sources import LANGFUSE
from tokenweir.usage import Metered, Usage

_INPUT: Final = ("input", "input_tokens", "prompt_tokens", "promptTokens")
_OUTPUT: Final = ("output", "output_tokens", "completion_tokens", "completionTokens")
_TOTAL: Final = ("total", "total_tokens", "totalTokens")
_READ: Final = ("cache_read_input_tokens", "input_cached_tokens", "input_cache_read")
_WRITTEN: Final = ("cache_creation_input_tokens", "input_cache_creation")
_WRITTEN_5M: Final = ("cache_creation.ephemeral_5m_input_tokens", "ephemeral_5m_input_tokens", "input_cache_creation_5m")
_WRITTEN_1H: Final = ("cache_creation.ephemeral_1h_input_tokens", "ephemeral_1h_input_tokens", "input_cache_creation_1h")
_THINKING: Final = ("output_reasoning_tokens", "reasoning_tokens", "thinking_tokens")
_SEARCHES: Final = ("web_search_requests", "server_tool_use.web_search_requests")
_KNOWN: Final = frozenset((*_INPUT, *_OUTPUT, *_TOTAL, *_READ, *_WRITTEN, *_WRITTEN_5M, *_WRITTEN_1H, *_THINKING, *_SEARCHES))
_UNBILLED: Final = frozenset({"web_fetch_requests", "code_execution_requests"})


def read(row: Row) -> ImportedCall | None:
    """The call of a row; None if it is none to the Claude API. Raises ValueError with the reason if it cannot be believed."""
    model = text(row, "provided_model_name", "providedModelName", "model")
    if text(row, "type").upper() not in ("GENERATION", "") or not is_claude(model):
        return None
    usage = part(row, "usage_details", "usageDetails", "usage")
    if not usage:
        usage = {name: row[name] for name in _KNOWN if row.get(name) not in (None, "")}
    own_id = text(row, "id")
    if not own_id:
        raise ValueError("id is missing")
    metadata = part(row, "metadata") if not isinstance(row.get("metadata"), list) else {}
    message_id = provider_ids(text(metadata, "message_id", "response_id"))[0]
    model = plain_model(model)
    return ImportedCall(
        source=LANGFUSE,
        started_at_us=moment(row, "start_time", "startTime"),
        ended_at_us=moment(row, "end_time", "endTime") if text(row, "end_time", "endTime") else 0,
        metered=_counted(usage, model),
        message_id=message_id,
        own_id=own_id,
        session_id=text(row, "session_id", "sessionId"),
        client="langfuse",
        person=text(row, "user_id", "userId"),
        tags=listed(row, "tags", "traceTags"),
    )


def _counted(usage: dict[str, Any], model: str) -> Metered:
    for name, value in usage.items():
        if name not in _KNOWN and name not in _UNBILLED and isinstance(value, int | float) and value:
            raise ValueError(f"usage_details.{name} is not known and may be billed")
    given, output, total = count(usage, *_INPUT), count(usage, *_OUTPUT), count(usage, *_TOTAL)
    if given is None or output is None:
        raise ValueError("usage_details states no input or no output")
    read, written = count(usage, *_READ), count(usage, *_WRITTEN)
    write_5m, write_1h = count(usage, *_WRITTEN_5M), count(usage, *_WRITTEN_1H)
    if written is not None:
        write_5m = written - (write_1h or 0)
        if write_5m < 0:
            raise ValueError("usage_details states more cache writes for an hour than cache writes")
    cached = (write_5m or 0) + (write_1h or 0) + (read or 0)
    uncached = given
    if total is not None:
        uncached = split_prompt(given, write_5m=write_5m or 0, write_1h=write_1h or 0, read=read or 0, output=output, total=total)
        if not cached and total != given + output:
            raise ValueError(f"usage_details states a total of {total}, and {given + output} in its parts")
    flags = (FLAG_CACHE_UNSAID,) if read is None and write_5m is None and write_1h is None else ()
    thinking = min(count(usage, *_THINKING) or 0, output)
    counts = Usage(uncached, write_5m or 0, write_1h or 0, read or 0, output, thinking, count(usage, *_SEARCHES) or 0)
    return metered(model, counts, flags=flags)
