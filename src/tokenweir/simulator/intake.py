"""Intake: from a body to an `Ask`, or to the refusal the provider would give.

Checks run in the provider's order as far as it is known: JSON, required fields, the model, then values. Only what decides the answer or the bill is kept.
The rules that the API version of 2026-10-21 brought are applied to that version alone. Change together with `prompt_cache.py` (blocks).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

import msgspec

from tokenweir.simulator.catalog import Catalog, SimulatedModel
from tokenweir.simulator.directives import PREFIX, split_directives
from tokenweir.simulator.prompt_cache import BREAKPOINTS_MAX, MESSAGES, SYSTEM, TOOLS, Block
from tokenweir.simulator.refusals import Refusal, invalid, unknown_model
from tokenweir.simulator.tokenizer import count_content, count_json, count_text

STRICT_VERSION = "2026-10-21"
VERSIONS = ("2023-01-01", "2023-06-01", STRICT_VERSION)
FAST_BETA = "fast-mode-2026-02-01"
BASE_TOKENS = 3
MESSAGE_TOKENS = 4
TOOL_TOKENS = 12
_NO_SETTINGS = ("", "", "")
_DECODER = msgspec.json.Decoder()


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A valid request, as far as the answer depends on it."""

    model: SimulatedModel
    requested: str
    max_tokens: int
    stream: bool
    blocks: tuple[Block, ...]
    cache_settings: tuple[str, str, str]
    caching: bool
    thinking: bool
    thinking_budget: int
    tool: dict[str, Any] | None
    """The tool that the answer must call."""
    searchable: bool
    stop_sequences: tuple[str, ...]
    speed: str
    """`fast`, `standard`, or empty when the request did not speak of it."""
    geo: str
    iterations: bool
    """Whether the answer lists its iterations even if there is only one."""
    advisor: str
    directives: dict[str, str]


def decode_body(body: bytes) -> dict[str, Any]:
    """The JSON object of a body."""
    try:
        value = _DECODER.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise invalid(f"The request body is not valid JSON: {error}") from None
    except UnicodeDecodeError:
        raise invalid("The request body is not valid UTF-8") from None
    if not isinstance(value, dict):
        raise invalid("The request body must be a JSON object")
    return value


def body_directives(values: dict[str, Any]) -> dict[str, str]:
    """What `metadata.user_id` asks of the simulator."""
    metadata = values.get("metadata")
    user = metadata.get("user_id") if isinstance(metadata, dict) else None
    return split_directives(user[len(PREFIX) :]) if isinstance(user, str) and user.startswith(PREFIX) else {}


def read_ask(values: dict[str, Any], catalog: Catalog, *, version: str, betas: frozenset[str]) -> Ask:
    """Check a Messages request; raises Refusal."""
    for name in ("model", "max_tokens", "messages"):
        if name not in values:
            raise invalid(f"{name}: Field required")
    model = find_model(values, catalog)
    max_tokens, stream = values["max_tokens"], values.get("stream", False)
    if not _is_int(max_tokens) or max_tokens < 0:
        raise invalid("max_tokens: Input should be greater than or equal to 0")
    if not isinstance(stream, bool):
        raise invalid("stream: Input should be a valid boolean")
    if max_tokens > model.output_max:
        raise invalid(f"max_tokens: {max_tokens} > {model.output_max}, which is the maximum allowed number of output tokens for {model.id}")
    blocks = tuple(prompt_blocks(values))
    if (total := sum(block.tokens for block in blocks)) > model.context:
        raise invalid(f"prompt is too long: {total} tokens > {model.context} maximum")
    tools = _tools(values)
    choice = values.get("tool_choice") or {}
    tool = _forced_tool(tools, choice)
    if max_tokens == 0 and (stream or tool is not None or _get(values, "output_config").get("format")):
        raise invalid("max_tokens: 0 cannot be used with stream, forced tool use or structured output")
    thinking = _get(values, "thinking")
    budget = _check_thinking(thinking, max_tokens)
    _check_sampling(values, version)
    speed, geo = _speed(values, model, betas), _geo(values, model)
    searchable = bool(tools) and any(str(tool.get("type", "")).startswith("web_search_") for tool in tools)
    caching = any(block.ttl for block in blocks)
    return Ask(
        model=model,
        requested=values["model"],
        max_tokens=max_tokens,
        stream=stream,
        blocks=blocks,
        cache_settings=_cache_settings(values, fast=speed == "fast", searchable=searchable) if caching else _NO_SETTINGS,
        caching=caching,
        thinking=thinking.get("type") in ("enabled", "adaptive", "between_tools"),
        thinking_budget=budget,
        tool=tool,
        searchable=searchable,
        stop_sequences=_stop_sequences(values),
        speed=speed,
        geo=geo,
        iterations=bool(values.get("compaction") or values.get("fallbacks") or _compacts(values)),
        advisor=next((str(tool.get("model") or "claude-opus-5-5") for tool in tools if str(tool.get("type", "")).startswith("advisor_")), ""),
        directives=body_directives(values),
    )


def _cache_settings(values: dict[str, Any], *, fast: bool, searchable: bool) -> tuple[str, str, str]:
    """What decides a prefix beside its blocks, at the level where it begins to matter."""
    effort = _get(values, "output_config").get("effort")
    return "", f"{fast}{searchable}", msgspec.json.encode([values.get("tool_choice"), values.get("thinking"), effort]).decode()


def find_model(values: dict[str, Any], catalog: Catalog) -> SimulatedModel:
    """The model asked for; a retired one is as unknown as one that never was."""
    ident = values.get("model")
    if not isinstance(ident, str):
        raise invalid("model: Input should be a valid string")
    model = catalog.find(ident)
    if model is None or model.lifecycle == "retired":
        raise unknown_model(ident)
    return model


def prompt_blocks(values: dict[str, Any]) -> list[Block]:
    """The prompt as a row of blocks with their token counts and breakpoints. Raises Refusal for malformed parts and wrong breakpoints."""
    blocks = [*_tool_blocks(values), *_system_blocks(values), *_message_blocks(values)]
    automatic = values.get("cache_control")
    if automatic is not None:
        last = blocks[-1]
        blocks[-1] = msgspec.structs.replace(last, ttl=last.ttl or _ttl(automatic, "cache_control"))
    marks = [block.ttl for block in blocks if block.ttl]
    if not marks:
        return blocks
    if len(marks) > BREAKPOINTS_MAX:
        raise invalid(f"A maximum of {BREAKPOINTS_MAX} blocks with cache_control may be provided. Found {len(marks)}.")
    if "1h" in marks and "5m" in marks and marks.index("5m") < len(marks) - 1 - marks[::-1].index("1h"):
        raise invalid("a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block")
    return blocks


def _tool_blocks(values: dict[str, Any]) -> Iterator[Block]:
    for index, tool in enumerate(_tools(values)):
        plain, ttl = _unmarked(tool, f"tools.{index}.cache_control")
        yield Block(TOOLS, TOOL_TOKENS + count_json(plain), ttl, plain)


def _system_blocks(values: dict[str, Any]) -> Iterator[Block]:
    system = values.get("system")
    if isinstance(system, str):
        yield Block(SYSTEM, count_text(system), "", {"type": "text", "text": system})
    elif isinstance(system, list):
        for index, part in enumerate(system):
            if not isinstance(part, dict) or not isinstance(part.get("text"), str):
                raise invalid(f"system.{index}.text: Field required")
            plain, ttl = _unmarked(part, f"system.{index}.cache_control")
            yield Block(SYSTEM, count_content(part), ttl, plain)
    elif system is not None:
        raise invalid("system: Input should be a valid string or array")


def _message_blocks(values: dict[str, Any]) -> Iterator[Block]:
    messages = values.get("messages")
    if not isinstance(messages, list):
        raise invalid("messages: Input should be a valid array")
    if not messages:
        raise invalid("messages: at least one message is required")
    base = BASE_TOKENS
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("user", "assistant", "system"):
            raise invalid(f"messages.{index}.role: Input should be 'user', 'assistant' or 'system'")
        content = message.get("content")
        if isinstance(content, str):
            yield Block(MESSAGES, base + MESSAGE_TOKENS + count_text(content), "", (role, {"type": "text", "text": content}))
        elif isinstance(content, list) and not content:
            yield Block(MESSAGES, base + MESSAGE_TOKENS, "", (role, None))
        elif isinstance(content, list):
            yield from _content_blocks(content, role, index, base + MESSAGE_TOKENS)
        else:
            raise invalid(f"messages.{index}.content: Input should be a valid string or array")
        base = 0


def _content_blocks(content: list[Any], role: str, index: int, frame: int) -> Iterator[Block]:
    """The blocks of one message; the first carries the message's own tokens."""
    for number, part in enumerate(content):
        where = f"messages.{index}.content.{number}"
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise invalid(f"{where}.type: Field required")
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise invalid(f"{where}.text: Field required")
        plain, ttl = _unmarked(part, f"{where}.cache_control")
        if ttl and part["type"] == "text" and not part["text"]:
            raise invalid(f"{where}: cache_control cannot be set for empty text blocks")
        yield Block(MESSAGES, frame + count_content(part), ttl, (role, plain))
        frame = 0


def _unmarked(part: dict[str, Any], where: str) -> tuple[dict[str, Any], str]:
    """A block without its breakpoint, and the breakpoint's lifetime."""
    marker = part.get("cache_control")
    if marker is None:
        return part, ""
    return {name: value for name, value in part.items() if name != "cache_control"}, _ttl(marker, where)


def _ttl(marker: Any, where: str) -> str:
    if not isinstance(marker, dict) or marker.get("type") != "ephemeral":
        raise invalid(f"{where}.type: Input should be 'ephemeral'")
    ttl = marker.get("ttl", "5m")
    if ttl not in ("5m", "1h"):
        raise invalid(f"{where}.ttl: Input should be '5m' or '1h'")
    return str(ttl)


def _tools(values: dict[str, Any]) -> list[dict[str, Any]]:
    tools = values.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise invalid("tools: Input should be a valid array of objects")
    for index, tool in enumerate(tools):
        if not isinstance(tool.get("name"), str) and tool.get("type") != "mcp_toolset":
            raise invalid(f"tools.{index}.name: Field required")
    return tools


def _forced_tool(tools: list[dict[str, Any]], choice: Any) -> dict[str, Any] | None:
    if not isinstance(choice, dict):
        raise invalid("tool_choice: Input should be a valid object")
    kind = choice.get("type", "auto")
    if kind in ("auto", "none"):
        return None
    if not tools:
        raise invalid("tool_choice may only be specified while providing tools")
    if kind == "any":
        return tools[0]
    found = next((tool for tool in tools if tool.get("name") == choice.get("name")), None)
    if kind != "tool" or found is None:
        raise invalid(f"tool_choice: tool '{choice.get('name')}' not found in provided tools")
    return found


def _check_thinking(thinking: dict[str, Any], max_tokens: int) -> int:
    """The thinking budget; 0 where there is none."""
    if thinking.get("type") != "enabled":
        return 0
    budget = thinking.get("budget_tokens")
    if not _is_int(budget) or budget < 1024:
        raise invalid("thinking.enabled.budget_tokens: Input should be greater than or equal to 1024")
    if budget >= max_tokens:
        raise invalid("`max_tokens` must be greater than `thinking.budget_tokens`")
    return budget


def _check_sampling(values: dict[str, Any], version: str) -> None:
    """What the API version of 2026-10-21 no longer takes, and the ranges of the older one."""
    if version != STRICT_VERSION:
        temperature = values.get("temperature")
        if temperature is not None and not (isinstance(temperature, int | float) and 0 <= temperature <= 1):
            raise invalid("temperature: range: 0..1")
        return
    for name in ("temperature", "top_p", "top_k"):
        if name in values:
            raise invalid(f"{name}: this parameter is not supported with anthropic-version {STRICT_VERSION}")
    for index, message in enumerate(values["messages"]):
        for number, part in enumerate(message["content"] if isinstance(message["content"], list) else ()):
            where = f"messages.{index}.content.{number}"
            if message["role"] == "assistant" and part["type"] == "document":
                raise invalid(f"{where}: document blocks are not permitted in assistant messages")
            if message["role"] == "user" and part["type"] == "text" and part.get("citations"):
                raise invalid(f"{where}.citations: citations are not permitted on user text blocks")


def _speed(values: dict[str, Any], model: SimulatedModel, betas: frozenset[str]) -> str:
    """The speed that will be reported; empty when the request did not speak of it."""
    speed = values.get("speed")
    if speed is None:
        return "standard" if FAST_BETA in betas else ""
    if speed not in ("standard", "fast"):
        raise invalid("speed: Input should be 'standard' or 'fast'")
    if FAST_BETA not in betas:
        raise invalid("speed: Extra inputs are not permitted")
    if speed == "fast" and model.fast == "no":
        raise invalid(f"speed: fast mode is not supported for {model.id}")
    return "standard" if model.fast == "ignored" else str(speed)


def _geo(values: dict[str, Any], model: SimulatedModel) -> str:
    geo = values.get("inference_geo")
    if geo is None:
        return "global" if model.geo else "not_available"
    if not model.geo:
        raise invalid(f"inference_geo: not supported for {model.id}")
    if geo not in ("global", "us"):
        raise invalid("inference_geo: Input should be 'global' or 'us'")
    return str(geo)


def _stop_sequences(values: dict[str, Any]) -> tuple[str, ...]:
    found = values.get("stop_sequences") or []
    if not isinstance(found, list) or not all(isinstance(text, str) and text.strip() for text in found):
        raise invalid("stop_sequences: each stop sequence must contain non-whitespace")
    return tuple(found)


def _compacts(values: dict[str, Any]) -> bool:
    edits = _get(values, "context_management").get("edits")
    return isinstance(edits, list) and any(isinstance(edit, dict) and str(edit.get("type", "")).startswith("compact") for edit in edits)


def _get(values: dict[str, Any], name: str) -> dict[str, Any]:
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def check_version(version: str) -> None:
    """The header that every request must carry."""
    if not version:
        raise invalid("anthropic-version: header is required")
    if version not in VERSIONS:
        raise invalid(f"anthropic-version: {version!r} is not a valid version")


def too_large() -> Refusal:
    """413: larger than the provider takes."""
    return Refusal(413, "request_too_large", "Request exceeds the maximum size")
