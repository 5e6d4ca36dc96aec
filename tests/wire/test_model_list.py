"""The provider's list of models: read as it is written, refused when it is something else."""

from __future__ import annotations

import pytest

from tokenweir.wire.model_list import read_models


def test_a_page_is_read_with_its_dates():
    page = read_models(
        b'{"data":[{"type":"model","id":"claude-x","display_name":"X","lifecycle":"deprecated","deprecated_at":"2026-10-01T00:00:00Z","retires_at":null,'
        b'"capabilities":{"a":{"supported":true}}}],"has_more":true,"first_id":"claude-x","last_id":"claude-x"}'
    )
    (model,) = page.data
    assert (model.id, model.text("lifecycle"), model.text("deprecated_at"), model.text("retires_at")) == (
        "claude-x",
        "deprecated",
        "2026-10-01T00:00:00Z",
        "",
    )
    assert (page.has_more, page.last_id) == (True, "claude-x")


def test_texts_are_made_harmless():
    page = read_models(b'{"data":[{"id":"a\\u001b[31m","display_name":"' + b"x" * 5000 + b'"}]}')
    assert page.data[0].text("id") == "a[31m"
    assert len(page.data[0].text("display_name")) == 200


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"data":7}', b'{"data":[{"id":7}]}', b'{"data":[{}]}', b"\xff", b'{"data":' + b"[" * 100_000])
def test_anything_else_is_refused_with_a_sentence(body):
    with pytest.raises(ValueError, match="not a list of models"):
        read_models(body)
