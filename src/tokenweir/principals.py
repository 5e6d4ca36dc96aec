"""Who is calling: the principal behind a key, and what the key lets it do.

A `Principal` is what authentication yields; it is all the hot path knows of the caller, and it never holds a secret.
"""

from __future__ import annotations

import msgspec


class Principal(msgspec.Struct, frozen=True):
    """The holder of a key, with the scope chain organization ⊃ team ⊃ key."""

    organization_id: str
    team_id: str
    key_id: str
    organization: str
    """Name of the organization, as shown."""
    team: str
    key: str
    owner: str = ""
    """The person or program that answers for the key; free text, often an email address."""
    tags: tuple[str, ...] = ()
