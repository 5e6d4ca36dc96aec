"""Model ids: the many spellings of one model, reduced step by step until the rate card knows the name.

Only decorations with a stated meaning are taken off: a vendor or cloud prefix, a `[1m]` suffix, a version, a date, `latest`. What remains must be a
name of the card exactly; nothing is matched by resemblance, because a new model must show as unknown and not be billed as its cousin.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_CLOUD = re.compile(r"^(?:arn:[^/]*/|(?:anthropic|bedrock|vertex_ai|models|publishers/anthropic/models)/)+")
_REGION = re.compile(r"^(?:(?:us|eu|apac|jp|au|ca|global|us-gov)\.)?anthropic\.")
_WINDOW = re.compile(r"\[\d+[km]\]$")
_BUILD = re.compile(r"-v\d+(?::\d+k?)*$")
_AT = re.compile(r"@(?:default|latest|\d{8})$")
_DATE = re.compile(r"-(?:latest|\d{8}|\d{4}-\d{2}-\d{2})$")
_LENGTH_MAX = 300


def spellings(model_id: str) -> Iterator[str]:
    """The id as written, then with one decoration after the other taken off."""
    name = model_id.strip()
    yield name
    if len(name) > _LENGTH_MAX:
        return
    name = name.lower()
    yield name
    for decoration in (_WINDOW, _CLOUD, _REGION, _BUILD, _AT, _DATE):
        name = decoration.sub("", name)
        yield name
    yield name.replace(".", "-")
