"""The cases that docs/REPORT.md compares one by one: what this report says of each is what the page says."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from tokenweir.importing.gathering import gather
from tokenweir.importing.places import find_transcripts
from tokenweir.money import NANOS_PER_USD
from tokenweir.pricing.rate_card import parse_rate_card
from tokenweir.reports.grouping import fill_cells, total

CARD = parse_rate_card((resources.files("tokenweir.pricing") / "rates.json").read_text("utf-8"))
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "REPORT.md").read_text("utf-8")
HAIKU, SONNET, OPUS = "claude-haiku-4-5-20251001", "claude-sonnet-4-5-20250929", "claude-opus-4-6"


def line(message="m", *, request="r", output=10, prompt=1000, model=HAIKU, stop="end_turn", content=None, usage=(), **fields):
    stated = {"id": message, "model": model, "stop_reason": stop, "content": [{"type": "text", "text": "x"}] if content is None else content}
    stated["usage"] = {"input_tokens": prompt, "output_tokens": output, **dict(usage)}
    entry = {
        "type": "assistant",
        "uuid": f"{message}{output}",
        "timestamp": "2026-11-20T10:00:00Z",
        "cwd": "/w",
        "sessionId": "s",
        "message": stated,
        **fields,
    }
    return json.dumps(entry | ({"requestId": request} if request else {}), separators=(",", ":")) + "\n"


QUOTED = json.dumps({"type": "progress", "data": {"message": json.loads(line())}}) + "\n"
CASES = {
    "plain": ({"a.jsonl": line()}, 1_050_000),
    "growing": ({"a.jsonl": line(output=1, stop=None) + line(output=500)}, 3_500_000),
    "shrinking lines": ({"a.jsonl": line(output=500) + line(output=1, stop=None)}, 3_500_000),
    "resumed sessions": ({"a.jsonl": line(), "b.jsonl": line(sessionId="t")}, 1_050_000),
    "sub-agents": ({"s/subagents/agent-a.jsonl": line(isSidechain=True)}, 1_050_000),
    "main and sub-agent": ({"a.jsonl": line(output=5), "agent-b.jsonl": line(output=900)}, 1_025_000),
    "no request id at all": ({"a.jsonl": line(request="") + line(request="", output=50)}, 1_250_000),
    "no message id": ({"a.jsonl": line(None, request="")}, 1_050_000),
    "torn line": ({"a.jsonl": line("a") + line("b")[:200] + "\n" + line("c")}, 2_100_000),
    "no last newline": ({"a.jsonl": (line("a") + line("b"))[:-1]}, 2_100_000),
    "one message id under two requests": ({"a.jsonl": line() + line(request="q", output=20)}, 2_150_000),
    "model `<synthetic>`": ({"a.jsonl": line(model="<synthetic>")}, 0),
    "`isApiErrorMessage`": ({"a.jsonl": line(isApiErrorMessage=True)}, 0),
    "one of two lines lacks the request id": ({"a.jsonl": line(request="") + line()}, 1_050_000),
    "a model without a price": ({"a.jsonl": line(model="claude-of-tomorrow-9")}, 15_750_000),
    "3 web searches": ({"a.jsonl": line(usage={"server_tool_use": {"web_search_requests": 3}})}, 31_050_000),
    "compaction in `iterations`": (
        {
            "a.jsonl": line(
                usage={
                    "iterations": [
                        {"type": "compaction", "input_tokens": 5000, "output_tokens": 100},
                        {"type": "message", "input_tokens": 1000, "output_tokens": 10},
                    ]
                }
            )
        },
        6_550_000,
    ),
    '`"usage": {` with a blank': ({"a.jsonl": line().replace('"usage":{', '"usage": {')}, 1_050_000),
    "Sonnet 4.5, 250,000 tokens of prompt": ({"a.jsonl": line(model=SONNET, prompt=250_000)}, 750_150_000),
    "Opus 4.6 with `speed: fast`": ({"a.jsonl": line(model=OPUS, usage={"speed": "fast"})}, 5_250_000),
    "refused without content": ({"a.jsonl": line(stop="refusal", content=[])}, 0),
    "Opus 4.6 with `inference_geo: us`": ({"a.jsonl": line(model=OPUS, usage={"inference_geo": "us"})}, 5_775_000),
    "a `progress` line": ({"a.jsonl": QUOTED}, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_a_case_costs_what_the_page_says(tmp_path, case):
    files, nanos = CASES[case]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    answers, _ = gather(find_transcripts([tmp_path], on_problem=print), CARD)
    assert total(fill_cells(answers, period="day", zone=ZoneInfo("UTC"))).cost_nanos == nanos
    row = next(row for row in PAGE.splitlines() if row.startswith("|") and case in row.split("|")[1])
    ours = row.split("|")[2].strip()
    assert ours in {"–", "nothing", "0", "counted"} or f"${nanos / NANOS_PER_USD:.6f}" in ours  # noqa: RUF001 - the page's own dash
