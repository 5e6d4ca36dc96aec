"""The demo is the product's first impression: it must start from nothing, agree with the truth, and leave nothing behind."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from itertools import islice

import pytest

from tokenweir.simulator.programs import PROGRAMS


def test_the_demo_runs_from_nothing_and_its_books_equal_the_truth(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TOKENWEIR_")}
    done = subprocess.run(
        [sys.executable, "-m", "tokenweir", "demo", "--seconds", "9", "--json"],
        env={**environment, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["differences"] == []
    assert outcome["exact"] > 0
    quota, rate, queue = outcome["limits"]
    assert 0 < quota["used"] <= quota["room"]
    assert 0 < rate["used"] <= rate["room"]
    assert (queue["used"], queue["refused"]) == (0, 0)
    assert queue["waited"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_a_program_does_the_same_with_the_same_seed(program):
    first, second = (list(islice(program.habit(random.Random(3)), 12)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_a_program_sends_bodies_that_the_gateway_can_read(program):
    from tokenweir.wire.envelope import read_envelope

    for call in islice(program.habit(random.Random(5)), 40):
        assert read_envelope(call.body).model.startswith("claude-")


def test_the_four_teams_have_different_habits():
    assert len({program.team for program in PROGRAMS}) == len({program.habit for program in PROGRAMS}) == 4
