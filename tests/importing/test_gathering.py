"""Gathering counts every answer once, says what it could not read, and fails whole if a process does."""

from __future__ import annotations

import json
import os
import signal
from importlib import resources

import pytest

from tokenweir.errors import OwnError
from tokenweir.importing import gathering
from tokenweir.importing.gathering import gather
from tokenweir.importing.places import find_transcripts
from tokenweir.pricing.rate_card import parse_rate_card

CARD = parse_rate_card((resources.files("tokenweir.pricing") / "rates.json").read_text("utf-8"))


def line(number, **usage):
    message = {
        "id": f"m{number}",
        "model": "claude-haiku-4-5",
        "stop_reason": "end_turn",
        "usage": {"input_tokens": number, "output_tokens": 1, **usage},
    }
    return json.dumps({"type": "assistant", "requestId": "r", "timestamp": "2026-11-01T00:00:00Z", "message": message}) + "\n"


def run(root, **options):
    problems = []
    return gather(find_transcripts([root], on_problem=problems.append), CARD, **options)


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_progress_adds_up_to_the_size_of_the_files(tmp_path, monkeypatch, processes):
    monkeypatch.setattr(gathering, "PART_BYTES", 700)
    monkeypatch.setattr(gathering, "TASK_BYTES", 700)
    for name in "abcde":
        (tmp_path / f"{name}.jsonl").write_text("".join(line(number) for number in range(20)))
    done = []
    answers, outcome = run(tmp_path, processes=processes, on_progress=done.append)
    assert sum(done) == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert len(answers) == 20
    assert outcome.torn == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_torn_lines_and_fields_of_the_future_are_said(tmp_path, processes):
    (tmp_path / "a.jsonl").write_text(line(1) + line(2)[:-9] + "\n" + line(3, moon_tokens=4) + line(4)[:-9])
    answers, outcome = run(tmp_path, processes=processes)
    assert len(answers) == 2
    assert outcome.torn == 1, "the last line is not torn: it is being written"
    assert outcome.unknown_fields == {"moon_tokens"}


def test_a_file_that_vanishes_is_said(tmp_path):
    (tmp_path / "a.jsonl").write_text(line(1))
    files = find_transcripts([tmp_path], on_problem=print)
    (tmp_path / "a.jsonl").unlink()
    answers, outcome = gather(files, CARD)
    assert len(answers) == 0
    assert "a.jsonl: No such file" in outcome.problems[0]


def test_a_process_that_dies_fails_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(gathering, "TASK_BYTES", 10)
    for name in "abcd":
        (tmp_path / f"{name}.jsonl").write_text(line(1))
    parent = os.getpid()
    read = gathering._read_parts

    def die(parts, *rest):
        if os.getpid() != parent and parts[0].file.path.endswith("c.jsonl"):
            os.kill(os.getpid(), signal.SIGKILL)
        return read(parts, *rest)

    monkeypatch.setattr(gathering, "_read_parts", die)
    with pytest.raises(OwnError, match="ended early"):
        run(tmp_path, processes=2)
