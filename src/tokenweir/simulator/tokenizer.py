"""Tokens: a deterministic count, cheap enough for load tests, and the words that answers are made of.

A text counts four UTF-8 bytes to a token, and never fewer tokens than words. It is additive over blocks, so that counts of a prompt's parts sum to the
count of the whole. The answers' vocabulary has words of three letters: with the space that is four bytes, hence n words are n tokens exactly.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import msgspec

IMAGE_TOKENS = 1_296
"""Every image counts as 1000x1000 pixels: nothing is decoded."""
DOCUMENT_TOKENS = 2_000
"""Every document that is not plain text counts as this."""
PROSE_TOKENS = 1 << 16
"""Length of the prose that answers are cut from; longer answers repeat it."""

_WORDS = (
    "the sea was far but not dry and our old map did say how any man may row out for its low bay now and see one red sun set "
    "all day her son ran off with few who knew why two new ice caps had met mid air let him ask her how big its top was then "
    "you can use tea oil rye oat egg ham jam pie fig nut cup pan pot tin lid jar box bag net rod hat cap tie pen ink pad key "
)
WORDS = tuple(sorted({word for word in _WORDS.split() if len(word) == 3}))


def count_text(text: str) -> int:
    """Tokens of a text."""
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return max((size + 3) >> 2, text.count(" ") + 1) if size else 0


def count_json(value: Any) -> int:
    """Tokens of a value written as JSON."""
    return (len(msgspec.json.encode(value)) + 3) >> 2


def count_content(block: dict[str, Any]) -> int:
    """Tokens of one content block."""
    kind = block.get("type")
    if kind == "text":
        return count_text(_text(block.get("text")))
    if kind == "image":
        return IMAGE_TOKENS
    if kind == "document":
        source = block.get("source")
        if isinstance(source, dict) and source.get("type") == "text":
            return 8 + count_text(_text(source.get("data")))
        return DOCUMENT_TOKENS
    if kind == "tool_result":
        content = block.get("content")
        if isinstance(content, list):
            return 6 + sum(count_content(part) for part in content if isinstance(part, dict))
        return 6 + count_text(_text(content))
    if kind == "thinking":
        return count_text(_text(block.get("thinking")))
    return 10 + count_json({name: value for name, value in block.items() if name not in ("type", "cache_control", "id", "tool_use_id")})


def make_prose(seed: int) -> str:
    """`PROSE_TOKENS` words chosen by the seed, each followed by a space."""
    words, count = WORDS, len(WORDS)
    return "".join(f"{words[byte % count]} " for block in range(PROSE_TOKENS // 64) for byte in blake2b(b"%d:%d" % (seed, block)).digest())


def cut_prose(prose: str, start: int, tokens: int) -> str:
    """`tokens` words of the prose from word `start` on, around its end if need be."""
    start = start % PROSE_TOKENS * 4
    size = tokens * 4
    if start + size <= len(prose):
        return prose[start : start + size]
    return (prose[start:] + prose * (size // len(prose) + 1))[:size]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
