"""Requests of Helicone, as its exporter and its query API give them, as CSV or JSON.

What they mean: `prompt_tokens` is without the cache for Anthropic, and `total_tokens` shows when it is not; with bodies in the export the provider's own
usage object and message id are there, and are taken instead. A request that Helicone answered from its cache called nobody. `cost` is Helicone's own
price and is not used. Change with it: docs/IMPORTS.md.
"""

from __future__ import annotations

from typing import Any, Final

from tokenweir.imports.fields import (
    FLAG_CACHE_UNSAID,
    Row,
    as_raw,
    count,
    first,
    is_claude,
    metered,
    moment,
    needed,
    own_usage,
    part,
    plain_model,
    provider_ids,
    split_prompt,
    text,
)
from tokenweir.ledger.imported import ImportedCall
from tokenweir.ledger.sources import HELICONE
from tokenweir.usage import Metered, Usage

_NOBODY: Final = "00000000-0000-0000-0000-000000000000"
_PROJECTS: Final = ("project", "Project", "app", "App", "appname")


def read(row: Row) -> ImportedCall | None:
    """The call of a row; None if it is none to the Claude API. Raises ValueError with the reason if it cannot be believed."""
    model = text(row, "response_model", "model", "request_model", "model_override")
    provider = text(row, "provider").lower()
    if not is_claude(model) or (provider and provider != "anthropic") or text(row, "cache_reference_id") not in ("", _NOBODY):
        return None
    status = count(row, "response_status", "status")
    if status is not None and status >= 400:
        return None
    own_id = text(row, "request_id", "id")
    if not own_id:
        raise ValueError("request_id is missing")
    model = plain_model(model)
    answer = _answer(row)
    usage = part(answer, "usage")
    theirs = own_usage(usage, model)
    properties = part(row, "request_properties", "properties")
    return ImportedCall(
        source=HELICONE,
        started_at_us=moment(row, "request_created_at", "created_at"),
        ended_at_us=moment(row, "response_created_at") if text(row, "response_created_at") else 0,
        metered=theirs or _counted(row, model),
        message_id=provider_ids(text(answer, "id"))[0],
        own_id=own_id,
        model_requested=plain_model(text(row, "request_model")),
        stop_reason=text(answer, "stop_reason"),
        session_id=text(properties, "Helicone-Session-Id"),
        client="helicone",
        project=text(properties, *_PROJECTS),
        person=text(row, "request_user_id", "user_id"),
        raw_usage=as_raw(usage) if theirs else b"",
    )


def _answer(row: Row) -> dict[str, Any]:
    """The provider's answer, if bodies were exported."""
    if first(row, "response_body", "response") is None:
        return {}
    try:
        return part(row, "response_body", "response")
    except ValueError:
        return {}  # text of a body that was cut or is not JSON: the columns say enough


def _counted(row: Row, model: str) -> Metered:
    read, written = count(row, "prompt_cache_read_tokens"), count(row, "prompt_cache_write_tokens")
    prompt, output = needed(row, "prompt_tokens"), needed(row, "completion_tokens")
    total = count(row, "total_tokens")
    uncached = prompt
    if total is not None:
        uncached = split_prompt(prompt, write_5m=written or 0, write_1h=0, read=read or 0, output=output, total=total)
    flags = (FLAG_CACHE_UNSAID,) if read is None and written is None else ()
    return metered(model, Usage(uncached, written or 0, 0, read or 0, output), flags=flags)
