"""How directives are written, and that each is documented."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenweir.simulator.directives import NAMES, PLAIN, BadDirective, build, header_directives, split_directives
from tokenweir.simulator.refusals import NAMED

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "SIMULATOR.md").read_text()


def test_pairs_are_split_at_semicolons_and_a_name_alone_means_true():
    assert split_directives("cut=120; cut-by=fin;no_stop;;") == {"cut": "120", "cut_by": "fin", "no_stop": "true"}


def test_headers_carry_directives_with_hyphens():
    assert header_directives([(b"x-sim-cut-by", b"fin"), (b"x-other", b"1")]) == {"cut_by": "fin"}


def test_later_layers_win_and_nothing_asked_is_the_plain_one():
    assert build({"cut": 5, "output": "3"}, {"cut": "7"}) == build({"cut": 7, "output": 3})
    assert build({}, {}) is PLAIN


@pytest.mark.parametrize("wrong", [{"cuts": 1}, {"cut": "x"}, {"cut": -2}, {"cut_by": "axe"}, {"refusal": "rude"}, {"searches": 1_000}])
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(BadDirective):
        build(wrong)


@pytest.mark.parametrize("name", [*NAMES, *NAMED])
def test_every_directive_and_every_error_is_documented(name):
    assert f"`{name}`" in DOCUMENT
