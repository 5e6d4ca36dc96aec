"""The few facts the gateway reads from a request body, and the most that the request can use.

The body itself is forwarded byte for byte, so the rule here is: *read only what the provider must read in the same way*. A body that two JSON readers
could understand differently (a repeated top-level field, a field that matters spelled with escapes, a number that is not plainly an integer) is refused
with a sentence. Unknown fields pass. `ceiling_usage` is what is journaled and reserved before anything is sent.

Cost: one pass of the decoder that keeps values as raw bytes, a proof in O(fields) that nothing was repeated, and a few searches for words.
Change together with `members.py` (how a body is read), `messages.py` (what the answer then says) and `pricing/rating.py` (what a ceiling costs).
"""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

import msgspec

from tokenweir.errors import InvalidRequest
from tokenweir.usage import Usage
from tokenweir.wire.members import Members, decode, prove_read_once, replaced, shown

CacheTtl: TypeAlias = Literal["", "5m", "1h"]

COUNT_MAX = 2**53
"""Integers beyond this are not the same number in every JSON reader."""
MODEL_CHARS_MAX = 256
WORD_CHARS_MAX = 64

IMAGE_TOKENS_MAX = 4_784
"""The most visual tokens of one image on any model."""
HIDDEN_PROMPT_TOKENS = 2_048
"""Allowance for what the provider adds to a prompt: frames of messages, the tool-use preamble, the schema preamble of structured output."""
HIDDEN_TOOL_TOKENS = 1_024
"""Allowance for each tool whose definition the provider holds (`bash_…`, `computer_…`): it is not in the body."""
SERVER_LOOP_CONTEXTS = 4
"""Declared allowance for server tools: the provider samples in a loop and adds the prompts up. Recordings stay under two contexts; no document
states a bound, so a request with server tools can in principle exceed its ceiling, and is then settled at what it used."""
WEB_SEARCHES_ALLOWED = 10
"""Declared allowance for a web-search tool without `max_uses`."""
WEB_SEARCHES_MAX = 1_000


class Envelope(msgspec.Struct, frozen=True):
    """What the gateway knows of a request: enough to permit it, to bound it, and no more."""

    model: str
    max_tokens: int | None = None
    stream: bool = False
    speed: str = ""
    inference_geo: str = ""
    service_tier: str = ""
    body_bytes: int = 0
    text_bytes: int = 0
    """The body without the contents of images and documents in base64, which are no text."""
    server_tools: bool = False
    """A tool that the provider runs in a loop of its own, or an MCP server."""
    remote_sources: bool = False
    """Something in the prompt is fetched, stored or compressed (URL, file id, PDF, container, thread), so the body's size does not bound it."""
    cache_ttl: CacheTtl = ""
    """The dearest time to live of any cache breakpoint; empty if the body has none."""
    images: int = 0
    """Blocks that may be images: small files can hold many visual tokens."""
    provided_tools: int = 0
    """Tools whose definition the provider holds."""
    web_searches_max: int = 0
    passes: int = 1
    """How often the whole prompt may be read: once, once more for compaction, once for each fallback model."""
    other_models: tuple[str, ...] = ()
    """Models besides `model` that may run parts of it (fallbacks, advisors), as they are spelled; a bound must look at their rates too."""


def read_envelope(body: bytes, *, needs_model: bool = True) -> Envelope:
    """Read a request body; raises `InvalidRequest` with one sentence if two readers could disagree about it, or it is not a request."""
    members = decode(body)
    prove_read_once(body, members, FIELDS_READ)
    model = _model(members, needed=needs_model)
    get = members.get
    ambiguous = b"\\" in body and b"\\u00" in body and _ESCAPED_WORD.search(body) is not None
    text = _ESCAPED_WORD.sub(_unescape, body) if ambiguous else body
    messages = get("messages")
    spoken: bytes | msgspec.Raw = text if ambiguous else b"" if messages is None else messages
    kinds = _KINDS.findall(spoken)
    tools = _read_tools(get("tools"))
    rare = _NOTHING_RARE if _RARE.isdisjoint(members) else _read_rare(members)
    return Envelope(
        model=model,
        max_tokens=None if (raw := get("max_tokens")) is None else _max_tokens(raw),
        stream=False if (raw := get("stream")) is None else _stream(raw),
        speed="" if (raw := get("speed")) is None else _word("speed", raw),
        inference_geo="" if (raw := get("inference_geo")) is None else _word("inference_geo", raw),
        service_tier="" if (raw := get("service_tier")) is None else _word("service_tier", raw),
        body_bytes=len(body),
        text_bytes=len(body) - (_encoded_bytes(body) if kinds else 0),
        server_tools=tools.server or rare.server or not _SOURCE_KINDS.issuperset(kinds),
        remote_sources=rare.remote or not _REMOTE_KINDS.isdisjoint(kinds) or _has_pdf(kinds, spoken),
        cache_ttl=_cache_ttl(text),
        images=kinds.count(b"image") if kinds else 0,
        provided_tools=tools.provided,
        web_searches_max=tools.web_searches,
        passes=1 + rare.compacts + len(rare.fallbacks),
        other_models=rare.fallbacks + tools.models,
    )


def with_model(body: bytes, model: str) -> bytes:
    """The body with another model in the place of its own, and every other byte as it was. For a body that `read_envelope` takes."""
    members = decode(body)
    if "model" not in members:
        raise InvalidRequest('the field "model" is missing; there is nothing to replace')
    return replaced(body, members, "model", msgspec.json.encode(model))


def ceiling_usage(envelope: Envelope, *, context_tokens: int, output_tokens_max: int) -> Usage:
    """An upper bound of what the attempt can use, all of the prompt in the dearest class that can apply.

    *Prompt*: a token is at least one byte of the body, images and provider-held texts have allowances, and no prompt exceeds the model's context.
    What the body's size does not bound counts as a full context. Each pass (compaction, fallbacks) reads the prompt once more.
    *Output*: `max_tokens` (the model's own limit if it says nothing) for each pass; an advisor adds one output limit, since `max_tokens` does not bind it.

    Exceptions, declared: server tools loop, and are bounded by `SERVER_LOOP_CONTEXTS` contexts and by `max_uses` (or `WEB_SEARCHES_ALLOWED`)
    searches; the provider may grow its hidden texts beyond the allowances; a field this version does not know may add work, and a key repeated inside a tool or a block is read once.
    """
    if envelope.server_tools:
        prompt = SERVER_LOOP_CONTEXTS * context_tokens * envelope.passes
    elif envelope.remote_sources:
        prompt = context_tokens * envelope.passes
    else:
        said = envelope.body_bytes + envelope.images * IMAGE_TOKENS_MAX
        prompt = min(context_tokens, said + HIDDEN_PROMPT_TOKENS + envelope.provided_tools * HIDDEN_TOOL_TOKENS) * envelope.passes
    output = output_tokens_max if envelope.max_tokens is None else min(envelope.max_tokens, output_tokens_max)
    output *= envelope.passes
    if envelope.server_tools and envelope.other_models:
        output += output_tokens_max
    searches = envelope.web_searches_max
    if envelope.cache_ttl == "1h":
        return Usage(cache_write_1h=prompt, output=output, web_searches=searches)
    if envelope.cache_ttl == "5m":
        return Usage(cache_write_5m=prompt, output=output, web_searches=searches)
    return Usage(uncached_input=prompt, output=output, web_searches=searches)


FIELDS_READ = frozenset(
    {
        "model", "max_tokens", "stream", "speed", "inference_geo", "service_tier", "tools", "messages", "system", "cache_control", "mcp_servers",
        "container", "thread", "fallbacks", "context_management", "compaction", "output_config", "thinking", "metadata",
    }
)  # fmt: skip
"""Fields that decide what a request may do or cost."""


# Fields.

_decode_str = msgspec.json.Decoder(str).decode


def _model(members: Members, *, needed: bool) -> str:
    raw = members.get("model")
    if raw is None:
        if needed:
            raise InvalidRequest('the field "model" is missing; it names the model, such as "claude-sonnet-5-5"')
        return ""
    try:
        model = _decode_str(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequest(f"model is {shown(raw)}; it must be a string") from None
    if not model or len(model) > MODEL_CHARS_MAX or not model.isprintable():
        raise InvalidRequest(f"model is {shown(raw)}; it must be 1 to {MODEL_CHARS_MAX} characters without control characters")
    return model


_DIGITS = re.compile(rb"0|[1-9][0-9]{0,15}")


def _max_tokens(raw: msgspec.Raw) -> int:
    if _DIGITS.fullmatch(raw) is not None:
        count = int(bytes(raw))
        if count <= COUNT_MAX:
            return count
    raise InvalidRequest(f"max_tokens is {shown(raw)}; it must be a whole number from 0 to {COUNT_MAX}, written in digits")


def _stream(raw: msgspec.Raw) -> bool:
    word = bytes(raw)
    if word == b"true":
        return True
    if word == b"false":
        return False
    raise InvalidRequest(f"stream is {shown(raw)}; it must be true or false")


def _word(name: str, raw: msgspec.Raw) -> str:
    if len(raw) <= 6 * WORD_CHARS_MAX:
        if bytes(raw) == b"null":
            return ""
        try:
            word = _decode_str(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise InvalidRequest(f"{name} is {shown(raw)}; it must be a string") from None
        if len(word) <= WORD_CHARS_MAX and word.isprintable():
            return word
    raise InvalidRequest(f"{name} is {shown(raw)}; it must be at most {WORD_CHARS_MAX} characters without control characters")


def _given(raw: msgspec.Raw | None) -> bool:
    """Whether a field is there and says something."""
    return raw is not None and bytes(memoryview(raw)[:4]) not in (b"null", b"[]", b"{}")


class _Rare(msgspec.Struct, frozen=True):
    """What fields say that few requests have."""

    server: bool = False
    remote: bool = False
    compacts: bool = False
    fallbacks: tuple[str, ...] = ()


_NOTHING_RARE = _Rare()
_RARE = frozenset({"mcp_servers", "container", "thread", "compaction", "context_management", "fallbacks"})


def _read_rare(members: Members) -> _Rare:
    get = members.get
    edits = get("context_management")
    return _Rare(
        server=_given(get("mcp_servers")),
        remote=_given(get("container")) or _given(get("thread")),
        compacts=_given(get("compaction")) or (edits is not None and _COMPACT.search(edits) is not None),
        fallbacks=_fallback_models(get("fallbacks")),
    )


# What lies deeper: searched for, not decoded. Every search errs on the dear side.

_ESCAPED_WORD = re.compile(rb"\\u00(2[dD]|3[0-9]|4[1-9a-fA-F]|5[0-9aAfF]|6[1-9a-fA-F]|7[0-9aA])")
"""A letter, digit, hyphen or underscore spelled as an escape: nobody does this but to hide a word."""
_KINDS = re.compile(
    rb'"type"\s*:\s*"(image|document|url|file|container_upload|mcp_toolset'
    rb'|(?:web_search|web_fetch|code_execution|advisor|tool_search_tool_regex|tool_search_tool_bm25)_[0-9]{8})"'
)
"""Blocks whose size the body does not show, and server tools that a message brings along (tools can change in mid-conversation)."""
_SOURCE_KINDS = frozenset({b"image", b"document", b"url", b"file", b"container_upload"})
_REMOTE_KINDS = frozenset({b"url", b"file", b"container_upload"})
_COMPACT = re.compile(rb"compact|\\u00")
_PDF = re.compile(rb'"application/pdf"')
_BREAKPOINT = b'"cache_control"'
_BREAKPOINTS_MAX = 64
"""The provider takes four; words in tool schemas may look like more."""
_FIVE_MINUTES = re.compile(
    rb'\s*:\s*(?:null|\{\s*"type"\s*:\s*"ephemeral"\s*(?:,\s*"ttl"\s*:\s*(?:"5m"|null)\s*)?\}|\{\s*"ttl"\s*:\s*"5m"\s*,\s*"type"\s*:\s*"ephemeral"\s*\})'
)


def _unescape(match: re.Match[bytes]) -> bytes:
    return bytes((int(match[1], 16),))


def _has_pdf(kinds: list[bytes], spoken: bytes | msgspec.Raw) -> bool:
    return b"document" in kinds and _PDF.search(spoken) is not None


_ENCODED = b'"base64"'
_DATA = re.compile(rb'"data"\s*:\s*"')
_SOURCE_BYTES_MAX = 256
"""How far around its contents a source reaches: the longest media type and some indentation. A bound, so that no body makes this slow."""


def _encoded_bytes(body: bytes) -> int:
    """Bytes of base64 in sources of images and documents. What only looks like such a source (in the text of a message, say) is text."""
    if _ENCODED not in body:
        return 0
    encoded = at = 0
    while (found := _DATA.search(body, at)) is not None:
        name, start = found.span()
        at = body.find(b'"', start)
        if at < 0:
            break
        # A source is one flat object: what says how `data` is written stands between it and the nearest brace, before or after.
        opening = body.rfind(b"{", max(0, name - _SOURCE_BYTES_MAX), name)
        closing = body.find(b"}", at, at + _SOURCE_BYTES_MAX)
        if (opening >= 0 and body.find(_ENCODED, opening, name) >= 0) or (closing >= 0 and body.find(_ENCODED, at, closing) >= 0):
            encoded += at - start
    return encoded


def _cache_ttl(text: bytes) -> CacheTtl:
    """Looks at every breakpoint. One that is not plainly for 5 minutes is taken as the dearest."""
    at = text.find(_BREAKPOINT)
    if at < 0:
        return ""
    for _ in range(_BREAKPOINTS_MAX):
        if _FIVE_MINUTES.match(text, at + len(_BREAKPOINT)) is None:
            return "1h"
        at = text.find(_BREAKPOINT, at + len(_BREAKPOINT))
        if at < 0:
            return "5m"
    return "1h"


class _Tool(msgspec.Struct, gc=False):
    type: str | None = None
    model: str | None = None
    max_uses: int | None = None


class _Fallback(msgspec.Struct, gc=False):
    model: str | None = None


class _Tools(msgspec.Struct, frozen=True):
    server: bool = False
    provided: int = 0
    web_searches: int = 0
    models: tuple[str, ...] = ()


_NO_TOOLS = _Tools()
_UNREADABLE_TOOLS = _Tools(server=True, web_searches=WEB_SEARCHES_ALLOWED)
_CLIENT_TOOLS = ("bash_", "text_editor_", "computer_", "memory_")
_decode_tools = msgspec.json.Decoder(list[_Tool]).decode
_decode_fallbacks = msgspec.json.Decoder(list[_Fallback | str]).decode


def _read_tools(raw: msgspec.Raw | None) -> _Tools:
    """What the tools can cost. A type that is not known to run at the client is taken to run at the provider."""
    if raw is None:
        return _NO_TOOLS
    try:
        tools = [tool for tool in _decode_tools(raw) if tool.type is not None and tool.type != "custom"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _NO_TOOLS if bytes(memoryview(raw)[:4]) == b"null" else _UNREADABLE_TOOLS
    if not tools:
        return _NO_TOOLS
    server, searches, models = False, 0, []
    for tool in tools:
        kind = tool.type or ""
        server = server or not kind.startswith(_CLIENT_TOOLS)
        if kind.startswith("web_search"):
            uses = WEB_SEARCHES_ALLOWED if tool.max_uses is None else tool.max_uses
            searches += min(max(uses, 0), WEB_SEARCHES_MAX)
        if tool.model is not None:
            models.append(tool.model[:MODEL_CHARS_MAX])
    return _Tools(server=server, provided=len(tools), web_searches=searches, models=tuple(models[:16]))


def _fallback_models(raw: msgspec.Raw | None) -> tuple[str, ...]:
    """The models named in `fallbacks`; an unreadable list counts as one unnamed."""
    if not _given(raw):
        return ()
    try:
        fallbacks = _decode_fallbacks(raw)  # type: ignore[arg-type] # Raw is a buffer
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ("",)
    return tuple((entry if isinstance(entry, str) else entry.model or "")[:MODEL_CHARS_MAX] for entry in fallbacks[:16])
