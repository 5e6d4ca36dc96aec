"""What a key may do, and the decision whether a request may pass.

Rights only narrow: an empty list of models or networks means "no restriction", never "more than the team". The decision is a value; the gateway
turns `Denied` into the provider's error shape. Limits (amounts per window) are not decided here but in `limits/`.
"""

from __future__ import annotations

import fnmatch
import ipaddress
from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from tokenweir.limits.queue import Priority
from tokenweir.periods import Micros, format_instant

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


class Policy(msgspec.Struct, frozen=True):
    """The effective rights of one key."""

    expires_at_us: Micros | None = None
    models: tuple[str, ...] = ()
    """Model ids or shell patterns such as `claude-haiku-*`; none means every model."""
    networks: tuple[str, ...] = ()
    """CIDR blocks that the key may be used from; none means anywhere."""
    priority: Priority = "normal"
    """Its class where requests wait for a limit. Set by the operator; nothing a client sends changes it."""


class Denied(msgspec.Struct, frozen=True):
    """A foreseen refusal: which rule, and a sentence for the caller."""

    reason: str
    """`expired`, `network` or `model`."""
    message: str


def permit_caller(policy: Policy, *, now_us: Micros, address: str, networks: Sequence[Network] | None = None) -> Denied | None:
    """Whether the key may be used now, from `address`; None means yes. `networks` are the policy's own, for who has parsed them before."""
    if policy.expires_at_us is not None and now_us >= policy.expires_at_us:
        return Denied("expired", f"this key expired at {format_instant(policy.expires_at_us)}")
    if policy.networks and not _inside(address, parse_networks(policy) if networks is None else networks):
        return Denied("network", f"this key may not be used from {address or 'an unknown address'}")
    return None


def permit_model(policy: Policy, model: str, canonical: str) -> Denied | None:
    """Whether the key may use the model, by the id that was sent or the canonical one; None means yes."""
    if not policy.models:
        return None
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in policy.models for name in (model, canonical)):
        return None
    return Denied("model", f"this key may not use {model}; it may use {', '.join(policy.models)}")


def parse_network(text: str) -> Network:
    """Read a CIDR block or a single address; raises ValueError with a sentence."""
    try:
        return ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is not a network; write it like 10.0.0.0/8 or 192.0.2.7") from None


def parse_networks(policy: Policy) -> tuple[Network, ...]:
    """The policy's networks, parsed."""
    return tuple(map(parse_network, policy.networks))


def _inside(address: str, networks: Sequence[Network]) -> bool:
    try:
        here = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(here, ipaddress.IPv6Address) and here.ipv4_mapped is not None:
        here = here.ipv4_mapped
    return any(here in block for block in networks)
