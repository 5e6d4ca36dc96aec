"""Times as people give them: each form means one instant, and everything else is refused with examples."""

from __future__ import annotations

import pytest

from tokenweir.cli.moments import duration_ms, moment
from tokenweir.periods import parse_instant

NOW = 1_795_000_000_000_000


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("90d", NOW + 90 * 86_400_000_000),
        (" 12h ", NOW + 43_200_000_000),
        ("2027-01-31", parse_instant("2027-01-31T00:00:00Z")),
        ("2027-01-31T12:00:00+02:00", parse_instant("2027-01-31T10:00:00Z")),
    ],
)
def test_a_moment_is_a_date_a_time_or_a_duration_from_now(text, wanted):
    assert moment(text, NOW) == wanted


@pytest.mark.parametrize("text", ["", "soon", "5", "-5d", "5 years", "2027-13-01"])
def test_anything_else_is_refused_with_examples(text):
    with pytest.raises(ValueError, match="write it like"):
        moment(text, NOW)


@pytest.mark.parametrize(("text", "wanted"), [("0s", 0), ("30m", 1_800_000), ("1w", 604_800_000), ("2 h", 7_200_000)])
def test_durations(text, wanted):
    assert duration_ms(text) == wanted
