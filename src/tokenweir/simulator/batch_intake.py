"""Intake of a batch: each request is checked as soon as it is whole, and everything the provider refuses at once is refused here.

`params` are only looked at when the line is worked on, as the provider does; but what they ask of the simulator is read, since it may concern the batch.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from tokenweir.simulator.directives import BATCH_PREFIX, NEVER, PREFIX, BadDirective, build
from tokenweir.simulator.intake import body_directives
from tokenweir.simulator.refusals import invalid

LINES_MAX = 100_000
BODY_BYTES_MAX = 256 * 1024 * 1024

_IDENT = re.compile(r"[a-zA-Z0-9_-]{1,64}")


class Row(msgspec.Struct, frozen=True):
    """One request of a batch; `params` stay the bytes that came, so that an answer is the same as it would be alone."""

    custom_id: str
    params: msgspec.Raw


class _Found(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    custom_id: Any = msgspec.UNSET
    params: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_found_decoder = msgspec.json.Decoder(_Found)
_row_decoder = msgspec.json.Decoder(Row)
_any_decoder = msgspec.json.Decoder()
read_row = _row_decoder.decode
"""A row that was taken in, from its bytes."""


class Intake:
    """What a batch asks for, row by row as it comes in."""

    def __init__(self) -> None:
        self.batch_directives: dict[str, str] = {}
        """Those of the whole batch that rows carry, later over earlier."""
        self.delays: dict[int, float] = {}
        """Rows with a delay of their own, by index."""
        self.count = 0
        self._seen: set[str] = set()

    def check(self, element: bytes) -> None:
        """Take one more row; raises Refusal as the provider does at once."""
        index = self.count
        if index >= LINES_MAX:
            raise invalid(f"requests: List should have at most {LINES_MAX} items after validation, not {LINES_MAX + 1}")
        try:
            found = _found_decoder.decode(element)
        except msgspec.ValidationError as error:
            raise invalid(f"requests.{index}: {error}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise invalid(f"The request body is not valid JSON: {error}") from None
        ident = found.custom_id
        if ident is msgspec.UNSET:
            raise invalid(f"requests.{index}.custom_id: Field required")
        if not isinstance(ident, str):
            raise invalid(f"requests.{index}.custom_id: Input should be a valid string")
        if not _IDENT.fullmatch(ident):
            raise invalid(f"requests.{index}.custom_id: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'")
        if ident in self._seen:
            raise invalid(f"requests.{index}.custom_id: custom_id '{ident}' is not unique: each custom_id must be unique within a batch")
        if found.params is msgspec.UNSET:
            raise invalid(f"requests.{index}.params: Field required")
        raw = bytes(found.params)
        if not raw.startswith(b"{"):
            raise invalid(f"requests.{index}.params: Input should be an object")
        self._seen.add(ident)
        self.count += 1
        if PREFIX.encode() in raw:
            self._note_directives(raw, index)

    def finish(self) -> None:
        """All rows are in."""
        if not self.count:
            raise invalid("requests: List should have at least 1 item after validation, not 0")
        self._seen = set()

    def _note_directives(self, raw: bytes, index: int) -> None:
        """A row may speak for itself and for its batch. What makes no sense is refused at once, so that no fault is rehearsed by mistake."""
        try:
            wanted = body_directives(_any_decoder.decode(raw))
            checked = build(wanted)
        except BadDirective as error:
            raise invalid(f"requests.{index}: {error}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise invalid(f"The request body is not valid JSON: {error}") from None
        self.batch_directives.update({name: value for name, value in wanted.items() if name.startswith(BATCH_PREFIX)})
        if checked.line_delay:
            self.delays[index] = NEVER if checked.line_delay < 0 else checked.line_delay
