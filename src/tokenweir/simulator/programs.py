"""Simulated programs: what four teams of different habits send to the API, for the demo.

Each habit is a generator of requests from a seeded random source, so a demo looks alike every time. Bodies are in the provider's format; what the
simulator makes of them (answers, caching, refusals) it decides itself. Change together with `cli/demo.py`, which sends them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import msgspec

_WORDS = (  # noqa: SIM905 - words read better as prose
    "river weir gauge level flow season spring flood bank stone gate sluice mill reach pool bend ford bridge depth current "
    "meter sample record total average limit budget ledger entry"
).split()


class Call(msgspec.Struct, frozen=True):
    """One request of a program, and how it behaves around it."""

    body: bytes
    pause_s: float
    """How long the program waits before it sends this."""
    patience: float = 1.0
    """Share of the answer it reads before it leaves; 1 reads to the end."""


Habit: TypeAlias = Callable[[random.Random], Iterator[Call]]


class Program(msgspec.Struct, frozen=True):
    """A program: whose it is, how often it runs side by side, and its habit."""

    team: str
    name: str
    copies: int
    habit: Habit


def _text(chance: random.Random, words: int) -> str:
    return " ".join(chance.choices(_WORDS, k=words))


def _body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def _cached(text: str, **cache_control: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text, "cache_control": {"type": "ephemeral", **cache_control}}]


def support(chance: random.Random) -> Iterator[Call]:
    """Short questions against one long instruction that stays in the cache: many small calls, most of the prompt read from the cache."""
    handbook = _text(random.Random("handbook"), 2_400)  # noqa: S311 - simulated text
    while True:
        yield Call(
            _body(
                model="claude-haiku-5-5",
                max_tokens=300,
                system=_cached(handbook),
                messages=[{"role": "user", "content": _text(chance, chance.randint(8, 60))}],
            ),
            pause_s=chance.uniform(0.2, 0.8),
        )


def coding(chance: random.Random) -> Iterator[Call]:
    """Long conversations with tools that grow turn by turn, streamed; each turn writes a little cache and reads the rest."""
    tools = [
        {"name": name, "description": _text(chance, 80), "input_schema": {"type": "object", "properties": {"path": {"type": "string"}}}}
        for name in ("read", "edit", "run")
    ]
    while True:
        messages: list[dict[str, Any]] = []
        model = chance.choice(["claude-sonnet-5-5", "claude-sonnet-5-5", "claude-opus-5-5"])
        for _ in range(chance.randint(4, 14)):
            messages.append({"role": "user", "content": _cached(_text(chance, chance.randint(60, 700)), ttl="1h")})
            body = _body(
                model=model,
                max_tokens=chance.choice([1_024, 4_096, 128_000]),
                stream=True,
                system=_cached(_text(random.Random("rules"), 1_500), ttl="1h"),  # noqa: S311 - simulated text
                tools=tools,
                messages=_with_last_marked(messages),
            )
            yield Call(body, pause_s=chance.uniform(0.3, 1.5))
            messages.append({"role": "assistant", "content": _text(chance, chance.randint(20, 200))})


def _with_last_marked(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The provider takes four cache marks at most: only the last user turns keep theirs."""
    marked = [index for index, message in enumerate(messages) if message["role"] == "user"][-2:]
    return [
        message
        if index in marked or message["role"] == "assistant"
        else {"role": "user", "content": [{"type": "text", "text": message["content"][0]["text"]}]}
        for index, message in enumerate(messages)
    ]


def nightly(chance: random.Random) -> Iterator[Call]:
    """Bursts of long documents, read once: large uncached prompts, short answers, now and then a request that is not valid."""
    while True:
        for number in range(chance.randint(10, 25)):
            valid = chance.random() > 0.04
            yield Call(
                _body(
                    model="claude-haiku-4-5" if valid else "claude-haiku-9",
                    max_tokens=200,
                    messages=[{"role": "user", "content": _text(chance, chance.randint(2_000, 9_000))}],
                ),
                pause_s=6.0 if number == 0 else 0.05,
            )


def research(chance: random.Random) -> Iterator[Call]:
    """Thinking and searching, streamed; impatient people leave some answers in the middle."""
    while True:
        yield Call(
            _body(
                model="claude-opus-5-5",
                max_tokens=8_192,
                stream=True,
                thinking={"type": "adaptive"},
                tools=[{"type": "web_search_20260209", "name": "web_search", "max_uses": 3}] if chance.random() < 0.4 else [],
                messages=[{"role": "user", "content": _text(chance, chance.randint(30, 400))}],
            ),
            pause_s=chance.uniform(0.5, 2.5),
            patience=chance.uniform(0.1, 0.9) if chance.random() < 0.12 else 1.0,
        )


PROGRAMS = (
    Program("support", "help-desk-bot", 3, support),
    Program("engineering", "coding-agents", 4, coding),
    Program("data", "nightly-documents", 1, nightly),
    Program("research", "analysts", 2, research),
)
"""Four teams of different habits."""
