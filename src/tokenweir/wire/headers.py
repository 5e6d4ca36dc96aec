"""Which headers pass, in both directions, and what the gateway reads from them.

Both directions are allow-lists: what is not named here does not pass. Credentials, cookies, forwarding headers, hop-by-hop headers (with whatever
`Connection` names) and headers that choose an organization or workspace never go up; the provider's rate limits, identities and cookies never come down,
since they are those of the shared account and not of the caller. Headers are lists of lower-case byte pairs, as ASGI has them.
Change together with `gateway/upstream.py` (who sends them) and `gateway/relay.py` (who adds ours).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import TypeAlias

import msgspec

from tokenweir.errors import InvalidRequest, Unauthenticated
from tokenweir.periods import Micros, parse_instant, to_micros

Header: TypeAlias = tuple[bytes, bytes]
Headers: TypeAlias = list[Header] | tuple[Header, ...]

UPSTREAM_REQUEST_ID = b"request-id"

_REQUEST_NAMES = frozenset(
    {
        b"accept", b"anthropic-beta", b"anthropic-dangerous-direct-browser-access", b"anthropic-version", b"content-type", b"traceparent", b"tracestate",
        b"user-agent", b"x-app",
    }
)  # fmt: skip
_REQUEST_PREFIXES = (b"x-stainless-", b"x-claude-code-")
_RESPONSE_NAMES = frozenset({b"cache-control", b"content-encoding", b"content-type", b"retry-after", b"retry-after-ms", b"x-should-retry"})
_RESPONSE_PREFIX = b"anthropic-"
_RESPONSE_WITHHELD = (
    b"anthropic-ratelimit-", b"anthropic-priority-", b"anthropic-fast-", b"anthropic-organization-", b"anthropic-workspace-",
)  # fmt: skip
_IDENTITY: Header = (b"accept-encoding", b"identity")
_VERDICTS_MAX = 1_024
_LINE_BREAKS = re.compile(rb"[\r\n\0]")

CREDENTIAL_CHARS_MAX = 512
RETRY_AFTER_MS_MAX = 4_294_967_000
"""What SDKs clip a wait to."""


class _Verdicts(dict[bytes, bool]):
    """Remembers which names pass: a few dozen names make up nearly all headers, and one lookup is cheaper than three tests."""

    def __init__(self, passes: Callable[[bytes], bool]) -> None:
        super().__init__()
        self._passes = passes

    def __missing__(self, name: bytes) -> bool:
        verdict = self._passes(name)
        if len(self) < _VERDICTS_MAX:  # names come from outside: the memory of them is bounded
            self[name] = verdict
        return verdict


_goes_up = _Verdicts(lambda name: name in _REQUEST_NAMES or name.startswith(_REQUEST_PREFIXES))
_comes_down = _Verdicts(lambda name: name in _RESPONSE_NAMES or (name.startswith(_RESPONSE_PREFIX) and not name.startswith(_RESPONSE_WITHHELD)))


def forward_request_headers(headers: Headers) -> list[Header]:
    """The client's headers that go to the provider, in order; the answer is asked for without compression, so that it can be metered."""
    kept = _without_tricks([header for header in headers if _goes_up[header[0]]], headers)
    kept.append(_IDENTITY)
    return kept


def forward_response_headers(headers: Headers) -> list[Header]:
    """The provider's headers that go to the client, in order. Length, date and `request-id` are the gateway's to set."""
    return _without_tricks([header for header in headers if _comes_down[header[0]]], headers)


def _without_tricks(kept: list[Header], headers: Headers) -> list[Header]:
    """Leave out what `Connection` names, and any value that could end a line."""
    named = _named_by_connection(headers)
    if named:
        kept = [header for header in kept if header[0] not in named]
    if _LINE_BREAKS.search(b"".join([value for _, value in kept])) is not None:
        kept = [header for header in kept if _LINE_BREAKS.search(header[1]) is None]
    return kept


def _named_by_connection(headers: Headers) -> frozenset[bytes]:
    for name, value in headers:
        if name == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            break
    else:
        return frozenset()
    values = b",".join(value for name, value in headers if name == b"connection")
    return frozenset(word.strip().lower() for word in values.split(b","))


# Credentials.


def credentials(headers: Headers) -> str:
    """The one key of a request, from `x-api-key` or `Authorization: Bearer`; raises if there is none, or if two could be meant."""
    api_key = _sole(headers, b"x-api-key").strip()
    authorization = _sole(headers, b"authorization").strip()
    bearer = b""
    if authorization:
        scheme, _, bearer = authorization.partition(b" ")
        bearer = bearer.strip()
        if scheme.lower() != b"bearer":
            if api_key:
                raise InvalidRequest("both x-api-key and another kind of Authorization were sent; send the key once")
            raise Unauthenticated("the Authorization header is not a bearer token; send the key as x-api-key or as Authorization: Bearer")
    if api_key and bearer and api_key != bearer:
        raise InvalidRequest("x-api-key and Authorization carry different keys; send one of them")
    key = api_key or bearer
    if not key:
        raise Unauthenticated("no key was sent; send it as x-api-key or as Authorization: Bearer")
    if len(key) > CREDENTIAL_CHARS_MAX or not key.isascii():
        raise Unauthenticated("what was sent as a key cannot be one")
    return key.decode("ascii")


def _sole(headers: Headers, wanted: bytes) -> bytes:
    values = [value for name, value in headers if name == wanted]
    if len(values) > 1:
        raise InvalidRequest(f"the header {wanted.decode()} was sent {len(values)} times; send it once")
    return values[0] if values else b""


# What the provider says remains.


class Room(msgspec.Struct, frozen=True):
    """One line of headroom: of how much, how much is left, and when it is full again; None where nothing was said."""

    limit: int | None = None
    remaining: int | None = None
    reset: str = ""

    @property
    def reset_us(self) -> Micros | None:
        """The reset as an instant."""
        try:
            return parse_instant(self.reset) if self.reset else None
        except (ValueError, OverflowError):
            return None


_NO_ROOM = Room()


class Headroom(msgspec.Struct, frozen=True):
    """What the provider's headers say remains of the shared account's limits."""

    requests: Room = _NO_ROOM
    tokens: Room = _NO_ROOM
    input_tokens: Room = _NO_ROOM
    output_tokens: Room = _NO_ROOM


_NO_HEADROOM = Headroom()
_RATELIMIT = b"anthropic-ratelimit-"


def read_headroom(headers: Headers) -> Headroom:
    """Read the rate-limit headers; what cannot be read is left out."""
    found = {name[20:]: value for name, value in headers if name.startswith(_RATELIMIT)}
    if not found:
        return _NO_HEADROOM
    return Headroom(_room(found, b"requests"), _room(found, b"tokens"), _room(found, b"input-tokens"), _room(found, b"output-tokens"))


def _room(found: dict[bytes, bytes], kind: bytes) -> Room:
    return Room(
        _amount(found.get(kind + b"-limit")), _amount(found.get(kind + b"-remaining")), found.get(kind + b"-reset", b"")[:40].decode("latin-1")
    )


def _amount(value: bytes | None) -> int | None:
    return int(value) if value is not None and len(value) <= 15 and value.isdigit() else None


_NUMBER = re.compile(rb"[0-9]{1,15}(?:\.[0-9]{0,9})?|\.[0-9]{1,9}")


def read_retry_after(headers: Headers, *, now_us: Micros) -> int | None:
    """How long the provider asks to wait, in milliseconds: `retry-after-ms`, or `retry-after` in seconds or as a date; None if it does not say."""
    found = {name: value.strip() for name, value in headers if name in (b"retry-after-ms", b"retry-after")}
    wait: float | None = None
    if _NUMBER.fullmatch(found.get(b"retry-after-ms", b"")):
        wait = float(found[b"retry-after-ms"])
    elif b"retry-after" in found:
        text = found[b"retry-after"]
        if _NUMBER.fullmatch(text):
            wait = float(text) * 1000
        elif len(text) <= 64:
            try:
                wait = (to_micros(parsedate_to_datetime(text.decode("ascii"))) - now_us) / 1000
            except (ValueError, TypeError, OverflowError):
                return None
    return None if wait is None else max(0, min(round(wait + 0.499), RETRY_AFTER_MS_MAX))


# Who says they are calling: free text of the client, never an identity.


class Attribution(msgspec.Struct, frozen=True):
    """What a client says of itself; kept for reports, trusted for nothing."""

    session_id: str = ""
    agent_id: str = ""
    parent_agent_id: str = ""
    client: str = ""
    """The user agent."""
    client_retry: int = 0
    """How often the SDK says that it has tried before."""


_ID_CHARS_MAX = 128
_CLIENT_CHARS_MAX = 200


def attribution(headers: Headers) -> Attribution:
    """Session, agents, user agent and retry count, bounded and free of control characters."""
    found = dict(headers)
    get = found.get
    retry = get(b"x-stainless-retry-count", b"")
    return Attribution(
        _plain(get(b"x-claude-code-session-id"), _ID_CHARS_MAX),
        _plain(get(b"x-claude-code-agent-id"), _ID_CHARS_MAX),
        _plain(get(b"x-claude-code-parent-agent-id"), _ID_CHARS_MAX),
        _plain(get(b"user-agent"), _CLIENT_CHARS_MAX),
        int(retry) if retry.isdigit() and len(retry) <= 4 else 0,
    )


def _plain(value: bytes | None, chars_max: int) -> str:
    if not value:
        return ""
    text = value[: 4 * chars_max].decode("utf-8", "replace")
    if not text.isprintable():
        text = "".join(character for character in text if character.isprintable())
    return text.strip()[:chars_max]
