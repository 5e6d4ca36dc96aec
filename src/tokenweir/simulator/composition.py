"""Composition: what is answered to an `Ask`, and what each part of the answer adds to the bill.

An answer is a row of parts (blocks), each generated within a segment (an iteration that one model runs and that is billed on its own). So what an
answer would bill is known after any number of its events, not only at its end: that is what the journal of truth says of streams that were cut.
Lengths and words depend on the seed and the body; ids on the seed and the attempt's number. Change together with `stream.py`.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import msgspec

from tokenweir.simulator.directives import Directives
from tokenweir.simulator.intake import Ask
from tokenweir.simulator.prompt_cache import Split
from tokenweir.simulator.tokenizer import count_text, cut_prose
from tokenweir.usage import Segment, Usage

SEARCH_RESULT_TOKENS = 1_800
QUERY_TOKENS = 12
ADVICE_TOKENS = 48
_NOTHING = Usage()


class Part(msgspec.Struct, frozen=True):
    """One content block."""

    kind: str
    """`text`, `thinking`, `json` (tool input), `compaction`, or `block` (sent whole)."""
    block: dict[str, Any]
    """As `content_block_start` shows it."""
    tokens: int = 0
    text: str = ""
    segment: int = 0
    extra: Usage = _NOTHING
    """What the segment's usage gains besides output once this part is complete."""


class Stage(msgspec.Struct, frozen=True):
    """A segment to come: its model and what its prompt costs. Output is what its parts generate."""

    kind: str
    model: str
    prompt: Usage
    billed: bool = True
    priming: int = 0
    """Output that is in no part: an advisor's own tokens, or those of a refusal without content."""


class Answer(msgspec.Struct, frozen=True):
    """A whole answer."""

    message_id: str
    model: str
    parts: tuple[Part, ...]
    stages: tuple[Stage, ...]
    stop_reason: str
    stop_sequence: str | None
    stop_details: dict[str, Any] | None
    placeholder: int
    """`output_tokens` of message_start, which means nothing."""
    service_tier: str
    inference_geo: str
    speed: str
    shows_thinking: bool
    shows_tools: bool
    shows_iterations: bool
    caching: bool


class Tally:
    """What has been generated so far, segment by segment."""

    __slots__ = ("_gained", "_output", "_reached", "_thinking", "answer")

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self._reached = 0
        self._output = [stage.priming if index == 0 else 0 for index, stage in enumerate(answer.stages)]
        self._thinking = 0
        self._gained: list[tuple[int, Usage]] = []

    def add(self, part: Part, tokens: int, *, done: bool) -> None:
        """Some tokens of a part were generated; `done` when it is complete."""
        while self._reached < part.segment:
            self._reached += 1
            self._output[self._reached] += self.answer.stages[self._reached].priming
        self._output[part.segment] += tokens
        if part.kind == "thinking":
            self._thinking += tokens
        if done and part.extra is not _NOTHING:
            self._gained.append((part.segment, part.extra))

    def add_all(self) -> Tally:
        """The whole answer was generated."""
        for part in self.answer.parts:
            self.add(part, part.tokens, done=True)
        return self

    def outcome(self) -> Outcome:
        """What this much of the answer would bill."""
        segments = [self._segment(index, stage) for index, stage in enumerate(self.answer.stages[: self._reached + 1])]
        billed = tuple(segment for segment, stage in zip(segments, self.answer.stages, strict=False) if stage.billed)
        top = _top_level(segments)
        return Outcome(msgspec.structs.replace(top, thinking=self._thinking) if self._thinking else top, tuple(segments), billed)

    def _segment(self, index: int, stage: Stage) -> Segment:
        prompt = stage.prompt
        usage = Usage(prompt.uncached_input, prompt.cache_write_5m, prompt.cache_write_1h, prompt.cache_read, self._output[index])
        for owner, gained in self._gained:
            if owner == index:
                usage = _plus(usage, gained)
        return Segment(stage.kind, stage.model, usage)


class Outcome(msgspec.Struct, frozen=True):
    """The usage of an answer, or of as much of it as was generated."""

    usage: Usage
    """The provider's top level."""
    segments: tuple[Segment, ...]
    """Every segment that was begun."""
    billed: tuple[Segment, ...]
    """Those that cost money."""


def _top_level(segments: list[Segment]) -> Usage:
    """The serving model's messages, without compaction and advice; a compaction alone if the message never began."""
    if len(segments) == 1 or segments[-1].kind == "fallback_message":
        return segments[-1].usage
    total = Usage()
    for segment in segments:
        if segment.kind == "message":
            total = _plus(total, segment.usage)
    return total


class Chance:
    """Small numbers from a seed and a subject."""

    __slots__ = ("_bytes", "_next")

    def __init__(self, seed: int, subject: bytes) -> None:
        self._bytes = blake2b(b"%d:" % seed + subject, digest_size=64).digest()
        self._next = 0

    def below(self, bound: int) -> int:
        """A number in [0, bound)."""
        at = self._next % 60
        self._next += 4
        return int.from_bytes(self._bytes[at : at + 4], "big") % bound


def mint(prefix: str, seed: int, number: int, salt: bytes = b"") -> str:
    """An id that looks like the provider's and is the same in every run with the same seed."""
    return prefix + blake2b(b"%d:%d:" % (seed, number) + salt, digest_size=12, person=b"tokenweir-sim-id").hexdigest()


def compose(ask: Ask, split: Split, wanted: Directives, *, seed: int, attempt: int, body_digest: bytes, prose: str) -> Answer:
    """The answer to a request."""
    chance = Chance(seed, body_digest)
    length, stop = _length(ask, wanted, chance)
    prompt = Usage(uncached_input=split.uncached, cache_write_5m=split.write_5m, cache_write_1h=split.write_1h, cache_read=split.read)
    stop_reason, sequence, details = _stop(ask, wanted, stop, chance)
    stages, serving = _stages(ask, wanted, prompt, length)
    offset = chance.below(1 << 16)
    parts = [] if wanted.refusal == "empty" else _parts(ask, wanted, length, len(stages), offset, prose, (seed, attempt))
    if any(part.kind == "json" and part.block["type"] == "tool_use" for part in parts) and not wanted.stop and stop_reason == "end_turn":
        stop_reason = "tool_use"
    return Answer(
        message_id=mint("msg_01", seed, attempt),
        model=serving,
        parts=tuple(parts),
        stages=tuple(stages),
        stop_reason=stop_reason,
        stop_sequence=sequence,
        stop_details=details,
        placeholder=8 if wanted.refusal == "empty" else 1 + chance.below(8),
        service_tier=wanted.tier or "standard",
        inference_geo=wanted.geo or ask.geo,
        speed=wanted.speed or ask.speed,
        shows_thinking=ask.thinking or any(part.kind == "thinking" for part in parts),
        shows_tools=ask.searchable or wanted.searches is not None,
        shows_iterations=ask.iterations or len(stages) > 1,
        caching=ask.caching,
    )


def _length(ask: Ask, wanted: Directives, chance: Chance) -> tuple[int, str]:
    """How many tokens are generated, and why it ends there."""
    if wanted.refusal == "empty":
        return 0, "refusal"
    natural = 8 + chance.below(16 << chance.below(6))
    length = natural + (wanted.thinking or 0) if wanted.output is None else wanted.output
    if wanted.refusal or wanted.stop == "refusal":
        # Without any content it would be the other kind of refusal, which is not billed.
        length = max(1, length)
    if length > ask.max_tokens or ask.max_tokens == 0:
        return ask.max_tokens, "max_tokens"
    return length, "end_turn"


def _stop(ask: Ask, wanted: Directives, stop: str, chance: Chance) -> tuple[str, str | None, dict[str, Any] | None]:
    if wanted.refusal or wanted.stop == "refusal":
        explanation = "The simulated model declined to go on."
        return "refusal", None, {"type": "refusal", "category": "general_harms", "explanation": explanation}
    chosen = wanted.stop or stop
    if ask.stop_sequences and (wanted.stop == "stop_sequence" or (chosen == "end_turn" and not wanted.stop and chance.below(4) == 0)):
        return "stop_sequence", ask.stop_sequences[0], None
    return chosen, None, None


def _stages(ask: Ask, wanted: Directives, prompt: Usage, length: int) -> tuple[list[Stage], str]:
    """The segments of the answer and the model that it names."""
    model = ask.model.served_id
    if wanted.refusal == "empty":
        return [Stage("message", model, prompt, billed=False, priming=4)], model
    if wanted.fallback:
        later = Usage(uncached_input=prompt.prompt + 4)
        return [Stage("message", model, prompt, billed=False), Stage("fallback_message", wanted.fallback, later)], wanted.fallback
    if wanted.compaction:
        later = Usage(uncached_input=wanted.compaction + 24)
        return [Stage("compaction", model, prompt), Stage("message", model, later)], model
    advisor = wanted.advisor or ask.advisor
    if advisor and length:
        asked = Usage(uncached_input=prompt.prompt + 400)
        later = Usage(uncached_input=prompt.prompt + ADVICE_TOKENS + 32)
        return [
            Stage("message", model, prompt),
            Stage("advisor_message", advisor, asked, priming=ADVICE_TOKENS),
            Stage("message", model, later),
        ], model
    return [Stage("message", model, prompt)], model


def _parts(ask: Ask, wanted: Directives, length: int, stages: int, offset: int, prose: str, ids: tuple[int, int]) -> list[Part]:
    """The blocks, whose tokens sum to `length` (a compaction's own come on top)."""
    parts: list[Part] = []
    left = length
    if wanted.compaction:
        parts.append(Part("compaction", {"type": "compaction", "content": None}, wanted.compaction, cut_prose(prose, offset + 7, wanted.compaction)))
    if wanted.fallback:
        block = {"type": "fallback", "from": {"model": ask.model.served_id}, "to": {"model": wanted.fallback}}
        parts.append(Part("block", block, segment=1))
    last = stages - 1
    thinking = min(left, _thinking_tokens(ask, wanted, length))
    if thinking:
        first = 0 if stages == 3 else last
        parts.append(Part("thinking", {"type": "thinking", "thinking": "", "signature": ""}, thinking, cut_prose(prose, offset + 3, thinking), first))
        left -= thinking
    if wanted.refusal == "thinking":
        return parts
    searches = wanted.searches if wanted.searches is not None else int(ask.searchable and left > QUERY_TOKENS)
    salt = mint("", *ids, b"block") if stages == 3 or searches or ask.tool or wanted.tool else ""
    if stages == 3:
        left = _add_advice(parts, left, salt)
    for number in range(searches):
        left = _add_search(parts, left, last, f"{salt}{number:02x}", caching=ask.caching)
    tool = _tool_part(ask, wanted, left, last, salt)
    text = left - (tool.tokens if tool else 0)
    if text:
        parts.append(Part("text", {"type": "text", "text": ""}, text, cut_prose(prose, offset, text), last))
    if tool:
        parts.append(tool)
    return parts


def _thinking_tokens(ask: Ask, wanted: Directives, length: int) -> int:
    if wanted.refusal == "thinking":
        return length
    if wanted.thinking is not None:
        return wanted.thinking
    if not ask.thinking:
        return 0
    return min(length // 3, ask.thinking_budget) if ask.thinking_budget else length // 3


def _add_advice(parts: list[Part], left: int, salt: str) -> int:
    """The executor's call, the advisor's answer; returns what is left of the length."""
    call = min(left, 6)
    ident = f"srvtoolu_01{salt}"
    parts.append(Part("json", {"type": "server_tool_use", "id": ident, "name": "advisor", "input": {}}, call, "{}"))
    result = {"type": "advisor_result", "text": "Keep it short and say what is known.", "stop_reason": "end_turn"}
    parts.append(Part("block", {"type": "advisor_tool_result", "tool_use_id": ident, "content": result}, segment=1))
    return left - call


def _add_search(parts: list[Part], left: int, segment: int, salt: str, *, caching: bool) -> int:
    """One search and its results; the results are input that the next sampling reads. Returns what is left of the length."""
    spent = min(left, QUERY_TOKENS)
    ident = f"srvtoolu_01{salt}"
    query = {"type": "server_tool_use", "id": ident, "name": "web_search", "input": {}}
    parts.append(Part("json", query, spent, '{"query": "tide tables for the low bay"}', segment))
    found = [
        {"type": "web_search_result", "title": f"Tides {n}", "url": f"https://example.org/tides/{n}", "encrypted_content": salt * 4, "page_age": None}
        for n in range(3)
    ]
    gained = {"cache_write_5m": SEARCH_RESULT_TOKENS} if caching else {"uncached_input": SEARCH_RESULT_TOKENS}
    result = {"type": "web_search_tool_result", "tool_use_id": ident, "content": found}
    parts.append(Part("block", result, segment=segment, extra=Usage(web_searches=1, **gained)))
    return left - spent


def _tool_part(ask: Ask, wanted: Directives, left: int, segment: int, salt: str) -> Part | None:
    """The call of a tool, if the request forces one or a directive names one."""
    if not (ask.tool or wanted.tool) or not left:
        return None
    name = wanted.tool or str((ask.tool or {}).get("name"))
    schema = (ask.tool or {}).get("input_schema")
    text = msgspec.json.encode(_example(schema)).decode()
    return Part("json", {"type": "tool_use", "id": f"toolu_01{salt}", "name": name, "input": {}}, min(left, count_text(text) + 8), text, segment)


_EXAMPLES: dict[str, Any] = {"string": "low bay", "integer": 7, "number": 1.5, "boolean": True, "array": [], "null": None}


def _example(schema: Any, depth: int = 0) -> Any:
    """A value that fits a simple JSON schema."""
    if not isinstance(schema, dict) or depth > 8:
        return {}
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return schema["enum"][0]
    kind = schema.get("type", "object")
    if kind != "object":
        return _EXAMPLES.get(kind, "low bay") if isinstance(kind, str) else None
    properties = schema.get("properties")
    return {name: _example(part, depth + 1) for name, part in properties.items()} if isinstance(properties, dict) else {}


def _plus(left: Usage, right: Usage) -> Usage:
    return Usage(*(getattr(left, name) + getattr(right, name) for name in Usage.__struct_fields__))
