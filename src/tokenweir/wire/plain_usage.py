"""The short way through a usage object: when every field in it is known and believable, one typed decode reads it whole.

Most answers are like that. Whatever is not (an unknown field, an iteration, a number that cannot be) is refused here and read the long way by
`usage_fields.py`, which says what is wrong with it. The two must agree on everything that this one accepts; a test holds them to it.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec

from tokenweir.usage import Metered, Segment, Usage
from tokenweir.wire.usage_fields import COUNT_MAX, FLAG_UNBILLED_REFUSAL

_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]


class _Writes(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    ephemeral_5m_input_tokens: _Count | None = None
    ephemeral_1h_input_tokens: _Count | None = None


class _Details(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    thinking_tokens: _Count | None = None


class _Tools(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    web_search_requests: _Count | None = None
    web_fetch_requests: _Count | None = None
    code_execution_requests: _Count | None = None


class PlainUsage(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A usage object in which nothing is unusual."""

    input_tokens: _Count
    output_tokens: _Count
    cache_creation_input_tokens: _Count | None = None
    cache_read_input_tokens: _Count | None = None
    cache_creation: _Writes | None = None
    output_tokens_details: _Details | None = None
    server_tool_use: _Tools | None = None
    service_tier: Literal["standard", "priority", "batch"] | None = None
    speed: Literal["standard", "fast"] | None = None
    inference_geo: Literal["global", "us", "not_available", ""] | None = None
    iterations: None = None
    fallback_credit: None = None


_decode = msgspec.json.Decoder(PlainUsage).decode


def read_plain(usage: bytes | msgspec.Raw, *, model: str, empty_refusal: bool) -> Metered | None:
    """The metered usage, if there is nothing unusual about it; None if it has to be read the long way."""
    try:
        plain = _decode(usage)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return plain_metered(plain, model=model, empty_refusal=empty_refusal)


def plain_metered(plain: PlainUsage, *, model: str, empty_refusal: bool) -> Metered | None:
    """The same for one that was decoded with what it stands in."""
    details, tools, writes, total = plain.output_tokens_details, plain.server_tool_use, plain.cache_creation, plain.cache_creation_input_tokens
    thinking = (details.thinking_tokens or 0) if details is not None else 0
    if thinking > plain.output_tokens:
        return None
    write_1h = (writes.ephemeral_1h_input_tokens or 0) if writes is not None else 0
    write_5m = (writes.ephemeral_5m_input_tokens or 0) if writes is not None else 0
    if total is not None:
        write_5m = max(0, total - write_1h)
    stated = Usage(
        plain.input_tokens,
        write_5m,
        write_1h,
        plain.cache_read_input_tokens or 0,
        plain.output_tokens,
        thinking,
        (tools.web_search_requests or 0) if tools is not None else 0,
        (tools.web_fetch_requests or 0) if tools is not None else 0,
        (tools.code_execution_requests or 0) if tools is not None else 0,
    )
    return Metered(
        model,
        stated,
        () if empty_refusal else (Segment("message", model, stated),),
        plain.service_tier or "",
        plain.speed or "",
        plain.inference_geo or "",
        (FLAG_UNBILLED_REFUSAL,) if empty_refusal else (),
    )
