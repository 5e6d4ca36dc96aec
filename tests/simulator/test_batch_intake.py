"""What the provider refuses of a batch at once, and what it does not look at yet."""

from __future__ import annotations

import json

import pytest

from tokenweir.simulator import batch_intake
from tokenweir.simulator.batch_intake import Intake, read_row
from tokenweir.simulator.refusals import Refusal


def take(*rows):
    intake = Intake()
    for row in rows:
        intake.check(row if isinstance(row, bytes) else json.dumps(row).encode())
    intake.finish()
    return intake


def row(ident="a", **params):
    return {"custom_id": ident, "params": {"model": "m", **params}}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "requests: List should have at least 1 item"),
        ([{"params": {}}], "requests.0.custom_id: Field required"),
        ([row(), {"custom_id": "b"}], "requests.1.params: Field required"),
        ([{"custom_id": 5, "params": {}}], "requests.0.custom_id: Input should be a valid string"),
        ([row("a b")], "requests.0.custom_id: String should match pattern"),
        ([row("a\n")], "requests.0.custom_id: String should match pattern"),
        ([row("")], "requests.0.custom_id: String should match pattern"),
        ([row("a" * 65)], "requests.0.custom_id: String should match pattern"),
        ([row("a"), row("b"), row("a")], "requests.2.custom_id: custom_id 'a' is not unique"),
        ([{"custom_id": "a", "params": []}], "requests.0.params: Input should be an object"),
        ([{"custom_id": "a", "params": {}, "extra": 1}], "requests.0: .*unknown field `extra`"),
        ([b'{"custom_id": "a", "params": {"x": nul}}'], "not valid JSON"),
        ([row("a", metadata={"user_id": "sim:cutt=1"})], "requests.0: unknown simulator directive 'cutt'"),
    ],
)
def test_what_the_provider_refuses_at_once_is_refused(rows, says):
    """The place of the fault stands in front."""
    with pytest.raises(Refusal, match=says) as refused:
        take(*rows)
    assert refused.value.status == 400


def test_params_are_not_looked_at_when_they_come_in():
    """The provider checks them when the line is worked on."""
    assert take({"custom_id": "a", "params": {"stream": "perhaps", "max_tokens": -1}}).count == 1


def test_one_more_than_a_hundred_thousand_is_too_many(monkeypatch):
    """The number is the provider's; here it is a smaller one."""
    assert batch_intake.LINES_MAX == 100_000
    monkeypatch.setattr(batch_intake, "LINES_MAX", 3)
    assert take(*(row(f"a{n}") for n in range(3))).count == 3
    with pytest.raises(Refusal, match="at most 3 items"):
        take(*(row(f"a{n}") for n in range(4)))


def test_a_row_speaks_for_itself_and_for_its_batch():
    """What begins with batch_ is for the whole; a delay is the row's own."""
    intake = take(
        row("a", metadata={"user_id": "sim:batch_delay=50;output=3"}),
        row("b", metadata={"user_id": "sim:batch-delay=70;line_delay=-1"}),
        row("c", metadata={"user_id": "sim:line_delay=20"}),
    )
    assert intake.batch_directives == {"batch_delay": "70"}
    assert intake.delays == {1: -1, 2: 20}


def test_the_params_of_a_row_are_the_bytes_that_came():
    """Spaces and the order of keys decide an answer, so they are kept."""
    params = b'{ "b" : 1,\n"a": "\\u00e9" }'
    assert bytes(read_row(b'{"custom_id": "a", "params": ' + params + b"}").params) == params
