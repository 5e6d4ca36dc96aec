"""Rows of limits: whatever a limit, a grant or a request holds comes back as it was."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limit_office import NOW, limit_office
from tokenweir.limit_ports import Comment, IncreaseRequest
from tokenweir.limits.limit import AMOUNT_MAX, Cycle, Grant, Limit, Rolling

TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20)
MOMENTS = st.integers(0, 2**53)
AMOUNTS = st.integers(1, AMOUNT_MAX)
WINDOWS = st.none() | st.builds(Rolling, period_us=AMOUNTS, burst=AMOUNTS) | st.builds(Cycle, timezone=TEXTS, anchor=TEXTS)


@pytest.fixture(scope="module")
def office(tmp_path_factory):
    with limit_office("sqlite", tmp_path_factory.mktemp("rows")) as made:
        yield made


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_everything_comes_back_as_it_was_put_in(office, data):
    for one in office.limits.limits():
        office.put(removed=(one.limit.limit_id,))
    fresh = f"{len(office.limits.limits(removed=True))}"
    limit = data.draw(st.builds(Limit, limit_id=st.just(f"limit_{fresh}"), name=TEXTS, amount=AMOUNTS, window=WINDOWS, created_at_us=MOMENTS))
    office.put(limit)
    grant = data.draw(
        st.builds(
            Grant,
            grant_id=st.just(f"grant_{fresh}"),
            limit_id=st.just(limit.limit_id),
            amount=AMOUNTS,
            rollover_max=st.none() | AMOUNTS,
            effective_at_us=MOMENTS,
            expires_at_us=st.none() | MOMENTS,
            priority=st.integers(0, 10**6),
            rollover_min=AMOUNTS,
            reason=TEXTS,
            created_at_us=MOMENTS,
            voided_at_us=st.none(),
        )
    )
    office.limits.add_grant(grant, actor="ana", now_us=NOW)
    request = IncreaseRequest(f"request_{fresh}", limit.limit_id, grant.amount, grant.expires_at_us, grant.reason, "bea", NOW)
    office.limits.add_request(request, actor="bea")
    said = data.draw(st.builds(Comment, at_us=MOMENTS, by=TEXTS, text=TEXTS))
    office.limits.comment_request(request.request_id, said, actor="ana")
    (record,) = office.limits.limits()
    assert (record.limit, record.grants) == (limit, (grant,))
    found = office.limits.request(request.request_id)
    assert (found.amount, found.until_us, found.reason, found.comments) == (request.amount, request.until_us, request.reason, (said,))
