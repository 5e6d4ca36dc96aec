"""Lists are given out in pages, forward and backward, and no row is lost or shown twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.simulator.paging import list_page
from tokenweir.simulator.refusals import Refusal


def page(count, query):
    return list_page(query, [f"id{n}" for n in range(count)], ident=str, show=lambda row: {"id": row})


@given(st.integers(0, 50), st.integers(1, 60))
def test_pages_forward_and_backward_cover_the_list(count, limit):
    """Each page begins where the one before ended; has_more is true but for the last."""
    forward, found = page(count, f"limit={limit}"), []
    while True:
        found += forward["data"]
        if not forward["has_more"]:
            break
        forward = page(count, f"limit={limit}&after_id={forward['last_id']}")
    assert [row["id"] for row in found] == [f"id{n}" for n in range(count)]
    backward = []
    first = f"id{count - 1}" if count else ""
    more = count > 0
    while more:
        got = page(count, f"limit={limit}&before_id={first}")
        backward = got["data"] + backward
        more, first = got["has_more"], got["first_id"]
    assert backward == found[: max(0, count - 1)]


def test_an_empty_page_has_no_ids():
    """They are null."""
    assert page(0, "") == {"data": [], "has_more": False, "first_id": None, "last_id": None}


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "limit=-1", "limit=²", "after_id=none", "before_id=none", "after_id=id1&before_id=id2"]
)
def test_a_wrong_page_is_refused(query):
    """With 400."""
    with pytest.raises(Refusal) as refused:
        page(5, query)
    assert refused.value.status == 400
