"""Answers are the same however rows arrive, and a packed record gives back what went in."""

from __future__ import annotations

from importlib import resources

from hypothesis import given
from hypothesis import strategies as st

from tokenweir.pricing.rate_card import parse_rate_card
from tokenweir.pricing.rating import cost_nanos
from tokenweir.reports.answers import BY_SUBAGENT, DOUBTED, UNFINISHED, UNPRICED, Answers
from tokenweir.usage import Metered, Segment, Usage
from tokenweir.wire.transcripts import FLAG_MISSING_TIME, RANK_BYTES, TranscriptRow, rank

CARD = parse_rate_card((resources.files("tokenweir.pricing") / "rates.json").read_text("utf-8"))
AT_US = 1_795_348_536_338_000


def row(
    message="m", request="r", *, output=5, model="claude-opus-4-5", at_us=AT_US, session="s", sidechain=False, stop="end_turn", flags=(), uuid="u"
):
    usage = Usage(1, 2, 3, 4, output, 1, 2)
    return TranscriptRow(
        f"{message}:{request}",
        at_us,
        Metered(model, usage, (Segment("message", model, usage),), flags=flags),
        message,
        request,
        uuid,
        session,
        cwd="/home",
        stop_reason=stop,
        sidechain=sidechain,
    )


def collected(*rows):
    answers = Answers()
    for one in rows:
        answers.add(one, CARD)
    answers.settle()
    return list(answers)


ROWS = st.lists(
    st.builds(
        row,
        st.sampled_from(["m", "n", ""]),
        st.sampled_from(["r", "q", ""]),
        output=st.integers(0, 3),
        session=st.sampled_from("ab"),
        sidechain=st.booleans(),
        at_us=st.integers(AT_US, AT_US + 2),
        uuid=st.sampled_from("xy"),
    ),
    max_size=8,
)


def test_a_record_gives_back_what_went_in_with_the_cost_of_its_own_time():
    one = row()
    (answer,) = collected(one)
    assert (answer.at_us, answer.session, answer.project, answer.model) == (AT_US, "s", "/home", "claude-opus-4-5")
    assert answer.counts == (1, 2, 3, 4, 5, 1, 2)
    assert (answer.cost_nanos, False) == cost_nanos(CARD, one.metered, at_us=AT_US)
    assert answer.doubts == 0


def test_a_rank_has_the_length_that_packing_counts_on():
    assert len(rank(row())) == RANK_BYTES


@given(ROWS, st.randoms())
def test_order_and_partition_change_nothing(rows, random):
    whole = collected(*rows)
    shuffled = random.sample(rows, len(rows))
    cut = random.randint(0, len(rows))
    first, second = Answers(), Answers()
    for index, one in enumerate(shuffled):
        (first if index < cut else second).add(one, CARD)
    first.merge(second.packed, second.names)
    first.settle()
    assert sorted(map(repr, first)) == sorted(map(repr, whole))


def test_a_row_without_request_is_the_answer_of_its_message_if_one_is_known():
    assert len(collected(row(request=""), row(request="r", output=9))) == 1
    assert collected(row(request="", output=9), row(request="r"))[0].counts[4] == 9
    assert len(collected(row(request=""), row("n"))) == 2
    assert len(collected(row(request="r"), row(request="q"))) == 2


def test_doubts_say_why_an_answer_is_an_estimate():
    assert collected(row(sidechain=True))[0].doubts == BY_SUBAGENT
    assert collected(row(stop=""))[0].doubts == UNFINISHED
    assert collected(row(flags=(FLAG_MISSING_TIME,)))[0].doubts == DOUBTED
    assert collected(row(flags=("unknown_usage_field:moons",)))[0].doubts == 0
    unknown = collected(row(model="claude-of-tomorrow"))[0]
    assert unknown.doubts == UNPRICED
    assert unknown.cost_nanos > 0


def test_models_go_by_the_name_of_the_rate_card():
    assert collected(row(model="claude-haiku-4-5-20251001"))[0].model == "claude-haiku-4-5"
