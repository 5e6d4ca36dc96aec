"""The provider's list of models, `GET /v1/models`, page by page.

The rule it protects: what the provider says of a model is taken as it is written; a page that is not a list of models is refused whole. Change with it:
`workers/model_watch.py`.
"""

from __future__ import annotations

import msgspec

_TEXT_CHARS_MAX = 200


class ListedModel(msgspec.Struct, frozen=True):
    """One model of the list."""

    id: str
    display_name: str | None = None
    created_at: str | None = None
    lifecycle: str | None = None
    deprecated_at: str | None = None
    retires_at: str | None = None

    def text(self, name: str) -> str:
        """A field as text that is safe to show; empty if it is not said."""
        value = getattr(self, name) or ""
        return "".join(character for character in value[:_TEXT_CHARS_MAX] if character.isprintable())


class ModelPage(msgspec.Struct, frozen=True):
    """One page."""

    data: tuple[ListedModel, ...]
    has_more: bool = False
    last_id: str | None = None


def read_models(body: bytes) -> ModelPage:
    """The page; raises ValueError with a sentence if it is none."""
    try:
        return msgspec.json.decode(body, type=ModelPage)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"the provider's answer is not a list of models: {type(error).__name__}") from None
