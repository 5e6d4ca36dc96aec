"""The keys that Tokenweir hands out: how a token is built, checked without any store, stored as a digest, and hinted at.

    tw_Zk3v9QxT1aBc_4rLw…30 characters of secret…XJ0a9f2
    │  │            │                             └ CRC-32 of all that stands before it, six base-62 characters
    │  │            └ the secret: 30 base-62 characters, 178 random bits
    │  └ twelve characters that name the key; they stand in its id too (`key_Zk3v9QxT1aBc`) and are no secret
    └ our own prefix, so that secret scanners find a leaked key and nobody takes it for one of the provider

The rules it protects: a malformed or mistyped token is turned away before any store is touched; only a keyed digest of the whole token is ever
stored or compared, so that neither a copy of the database nor the time of a lookup helps to guess one. Change docs/KEYS.md and `PATTERN` together:
the pattern is published.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import zlib
from collections.abc import Callable
from typing import Final, NoReturn

PATTERN: Final = "^tw_[0-9A-Za-z]{12}_[0-9A-Za-z]{36}$"
"""The published pattern; give it to secret scanners."""

PREFIX: Final = "tw_"
KEY_PART_LENGTH: Final = 12
SECRET_LENGTH: Final = 30
CHECKSUM_LENGTH: Final = 6
TOKEN_LENGTH: Final = len(PREFIX) + KEY_PART_LENGTH + 1 + SECRET_LENGTH + CHECKSUM_LENGTH
ENTROPY_BYTES: Final = 32
"""How many random bytes `mint` and `key_part` take at least. 62^30 divides 2^256 with a bias below 2^-77: uniform for every purpose."""

_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_PAIRS: Final = tuple(high + low for high in _ALPHABET for low in _ALPHABET)
# The digits are spelled out because `\d` and `\w` match far more than ASCII; `\Z` because `$` lets a newline pass.
_SHAPE: Final = re.compile(r"tw_[0-9A-Za-z]{12}_[0-9A-Za-z]{36}\Z").match
_KEY_PART: Final = re.compile(r"[0-9A-Za-z]{12}\Z").match


class Secret:
    """Text that must travel through code and never be shown.

    Own rather than pydantic's `SecretStr`, because that one pickles and copies its content; this one refuses to leave the process in any way but
    `reveal()`, which is easy to search for in review.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself. Every call of this is a place to review."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(hidden)"

    def __str__(self) -> str:
        return "hidden"

    def __format__(self, spec: str) -> str:
        return "hidden"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._text.encode(), other._text.encode())

    __hash__ = None  # type: ignore[assignment]  # a secret has no business as a key of a dictionary

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret cannot be pickled or copied")


def key_part(entropy: bytes) -> str:
    """Twelve base-62 characters for a new key: its id is `key_` and these."""
    return _base62(_wide_enough(entropy), KEY_PART_LENGTH)


def mint(part: str, entropy: bytes) -> str:
    """A new token for the key that `part` names; `entropy` is at least ENTROPY_BYTES random bytes, used for nothing else."""
    if not _KEY_PART(part):
        raise ValueError(f"{part!r} cannot name a key: it takes {KEY_PART_LENGTH} letters and digits")
    body = f"{PREFIX}{part}_{_base62(_wide_enough(entropy), SECRET_LENGTH)}"
    return body + _checksum(body)


def check(token: str) -> bool:
    """Whether the token is one that could have been minted. Needs no store: it turns away every single mistyped character."""
    return _SHAPE(token) is not None and token[-CHECKSUM_LENGTH:] == _checksum(token[:-CHECKSUM_LENGTH])


def digest(token: str, pepper: bytes) -> bytes:
    """What is stored and looked up in place of the token: HMAC-SHA-256 of the whole of it under the pepper."""
    return hmac.digest(pepper, token.encode(), "sha256")


def digester(pepper: bytes) -> Callable[[str], bytes]:
    """`digest` for one pepper, for the hot path: the two padded keys of HMAC are hashed once here instead of at every call (2 µs instead of 5)."""
    key = hashlib.sha256(pepper).digest() if len(pepper) > 64 else pepper
    padded = key.ljust(64, b"\0")
    copy_inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded)).copy
    copy_outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in padded)).copy

    def digest_of(token: str) -> bytes:
        inner = copy_inner()
        inner.update(token.encode())
        outer = copy_outer()
        outer.update(inner.digest())
        return outer.digest()

    return digest_of


def hint(token: str) -> str:
    """What may be shown of a token later on; no character of the secret is in it."""
    return hint_of_part(token[len(PREFIX) : len(PREFIX) + KEY_PART_LENGTH])


def hint_of_part(part: str) -> str:
    """The same, from the twelve characters that name the key."""
    return f"{PREFIX}…{part[-4:]}"


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), CHECKSUM_LENGTH)


def _base62(number: int, length: int) -> str:
    """The lowest `length` base-62 digits of the number, most significant first; `length` is even, because two are taken at a time."""
    pairs = []
    for _ in range(length // 2):
        number, pair = divmod(number, 3844)
        pairs.append(_PAIRS[pair])
    return "".join(reversed(pairs))


def _wide_enough(entropy: bytes) -> int:
    if len(entropy) < ENTROPY_BYTES:
        raise ValueError(f"{ENTROPY_BYTES} random bytes are needed, not {len(entropy)}")
    return int.from_bytes(entropy, "big")
