"""Spend logs of the LiteLLM proxy: rows of its table `LiteLLM_SpendLogs`, as CSV or JSON.

What they mean: `prompt_tokens` includes cache reads and cache writes; the split is in `metadata.usage_object` (or `additional_usage_values` of older
versions); `spend` is LiteLLM's own price and is not used; `cache_hit` means that LiteLLM answered and nobody was called; `request_id` is the provider's
message id for some routes and LiteLLM's own for others. Change with it: docs/IMPORTS.md.
"""

from __future__ import annotations

from typing import Any

from tokenweir.imports.fields import (
    FLAG_CACHE_UNSAID,
    Row,
    as_raw,
    count,
    is_claude,
    listed,
    metered,
    moment,
    needed,
    own_usage,
    part,
    plain_model,
    provider_ids,
    text,
)
from tokenweir.ledger.imported import ImportedCall
from tokenweir.ledger.sources import LITELLM
from tokenweir.usage import Metered, Usage


def read(row: Row) -> ImportedCall | None:
    """The call of a row; None if it is none to the Claude API. Raises ValueError with the reason if it cannot be believed."""
    model, provider = text(row, "model"), text(row, "custom_llm_provider").lower()
    if not is_claude(model) or (provider and provider != "anthropic") or text(row, "cache_hit").lower() == "true":
        return None
    if text(row, "status").lower() == "failure" and not count(row, "total_tokens"):
        return None
    metadata = part(row, "metadata")
    usage = part(metadata, "usage_object")
    own_id = text(row, "request_id")
    if not own_id:
        raise ValueError("request_id is missing")
    message_id, request_id = provider_ids(own_id)
    model = plain_model(model)
    theirs = own_usage(usage, model)
    team = text(metadata, "user_api_key_team_alias") or text(row, "team_id")
    return ImportedCall(
        source=LITELLM,
        started_at_us=moment(row, "startTime"),
        ended_at_us=moment(row, "endTime") if text(row, "endTime") else 0,
        metered=theirs or _counted(row, usage, metadata, model),
        message_id=message_id,
        request_id=request_id,
        own_id=own_id,
        model_requested=text(row, "model_group"),
        session_id=text(row, "session_id"),
        client="litellm",
        person=text(row, "end_user") or text(row, "user") or text(metadata, "user_api_key_alias"),
        tags=(*((f"team:{team}",) if team else ()), *listed(row, "request_tags")),
        raw_usage=as_raw(usage) if theirs else b"",
    )


def _counted(row: Row, usage: dict[str, Any], metadata: dict[str, Any], model: str) -> Metered:
    """Counts in LiteLLM's own terms."""
    older = part(metadata, "additional_usage_values")
    said = older | usage
    details = part(said, "prompt_tokens_details")
    writes = part(details, "cache_creation_token_details")
    read = count(said, "cache_read_input_tokens")
    if read is None:
        read = count(details, "cached_tokens")
    written = count(said, "cache_creation_input_tokens")
    if written is None:
        written = count(details, "cache_creation_tokens")
    prompt = needed(row, "prompt_tokens")
    output = needed(row, "completion_tokens")
    total = count(row, "total_tokens")
    if total is not None and total != prompt + output:
        raise ValueError(f"total_tokens is {total} and not prompt_tokens and completion_tokens together, {prompt + output}")
    write_1h = count(writes, "ephemeral_1h_input_tokens") or 0
    write_5m = (written or 0) - write_1h
    uncached = prompt - (written or 0) - (read or 0)
    if uncached < 0 or write_5m < 0:
        raise ValueError(f"prompt_tokens is {prompt} and smaller than the {(written or 0) + (read or 0)} of it that were cached")
    thinking = min(count(part(said, "completion_tokens_details"), "reasoning_tokens") or 0, output)
    searches = count(part(said, "server_tool_use"), "web_search_requests") or 0
    flags = (FLAG_CACHE_UNSAID,) if read is None and written is None else ()
    return metered(model, Usage(uncached, write_5m, write_1h, read or 0, output, thinking, searches), flags=flags)
