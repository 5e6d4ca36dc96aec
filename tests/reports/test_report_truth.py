"""What the report says of any tree is what a slow reader, written from the rules alone, says of it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from misleading_trees import PRICES, trees
from tokenweir.importing import gathering, scanning
from tokenweir.importing.gathering import gather
from tokenweir.importing.places import find_transcripts
from tokenweir.pricing.rate_card import parse_rate_card
from tokenweir.reports.grouping import fill_cells, group
from transcript_oracle import CLASSES, totals

CARD = parse_rate_card((Path(gathering.__file__).parents[1] / "pricing" / "rates.json").read_text("utf-8"))


def write(root, tree):
    for name, content in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return sorted(root.glob("**/*.jsonl"))


def by_day(root, *, zone, processes=1):
    problems = []
    answers, outcome = gather(find_transcripts([root], on_problem=problems.append), CARD, processes=processes)
    assert problems == outcome.problems == []
    cells = fill_cells(answers, period="day", zone=ZoneInfo(zone))
    return {row.period: {name: getattr(row.sums, name) for name in (*CLASSES, "cost_nanos")} for row in group(cells, ["day"])}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(trees(), st.sampled_from(["UTC", "Asia/Kathmandu", "America/New_York"]), st.sampled_from([64, 700, 512 * 1024]))
def test_tokens_and_cost_of_every_day_are_those_of_the_oracle(tree, zone, piece_bytes):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        root = Path(folder)
        files = write(root, tree)
        patch.setattr(scanning, "PIECE_BYTES", piece_bytes)
        assert by_day(root, zone=zone) == totals(files, PRICES, zone=zone)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(trees(), st.integers(40, 3_000))
def test_any_number_of_processes_and_any_cut_of_files_gives_the_same(tree, part_bytes):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        root = Path(folder)
        files = write(root, tree)
        patch.setattr(gathering, "PART_BYTES", part_bytes)
        patch.setattr(gathering, "TASK_BYTES", part_bytes)
        assert by_day(root, zone="UTC", processes=3) == totals(files, PRICES)


def test_the_oracle_is_not_blind(tmp_path):
    """First-wins, summing all lines, dropping sub-agents: each gives another total than the oracle on a tree made for it."""
    usage = {"input_tokens": 1, "output_tokens": 1}
    line = {"type": "assistant", "uuid": "u", "requestId": "r", "timestamp": "2026-11-01T00:00:00Z"}
    message = {"id": "m", "model": "claude-haiku-4-5-20251001", "usage": usage}
    grown = {**message, "usage": {"input_tokens": 1, "output_tokens": 500}}
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({**line, "message": each}) for each in (message, grown)) + "\n")
    (tmp_path / "agent-x.jsonl").write_text(json.dumps({**line, "message": {**message, "id": "n"}, "isSidechain": True}) + "\n")
    day = totals(sorted(tmp_path.glob("*.jsonl")), PRICES)["2026-11-01"]
    assert (day["output"], day["uncached_input"]) == (501, 2)
    assert by_day(tmp_path, zone="UTC") == {"2026-11-01": day}
