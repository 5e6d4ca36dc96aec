"""Compares the simulator's journal of truth with the exported ledger, attempt by attempt.

What must hold, of every attempt that reached the provider: it is in the ledger exactly once. What the ledger calls exact is equal to the token and to the
nano-dollar; what it calls partial has the true prompt and no more output than was generated (and the placeholder of the first event); what it calls a
ceiling is no less than the truth; what it says was refused cost nothing. An attempt whose gateway died before it saw the head of the answer has no id of
the provider's: it is found by its session, and must be a flagged ceiling. An entry without a truth is one whose request never arrived, and says so.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CLASSES = ("uncached_input", "cache_write_5m", "cache_write_1h", "cache_read", "output")
COUNTS = (*CLASSES, "thinking", "web_searches")
PLACEHOLDER_TOKENS = 8
"""`message_start` states up to so many output tokens before any is generated."""

Line = Mapping[str, Any]


@dataclass
class Comparison:
    """What was found. `problems` is empty if truth and ledger agree."""

    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        return ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items()))

    def agree(self) -> None:
        """Fail with everything that is wrong."""
        assert not self.problems, f"{len(self.problems)} problems ({self}):\n" + "\n".join(self.problems[:20])


def compare(truth: Sequence[Line], ledger: Sequence[Line], *, sessions: Mapping[str, str] | None = None) -> Comparison:
    """`sessions` names the session of each request by the SHA-256 of its body; it is needed when gateways died."""
    found = Comparison()
    attempts = [entry for entry in ledger if entry["kind"] == "attempt"]
    found.counts.update({"in truth": len(truth), "in the ledger": len(attempts)})
    _once(found, "attempt_id", [entry["attempt_id"] for entry in attempts])
    _once(found, "upstream_request_id", [entry["upstream_request_id"] for entry in attempts if entry["upstream_request_id"]])
    _once(found, "request id in truth", [line["request_id"] for line in truth])
    named = {entry["upstream_request_id"]: entry for entry in attempts if entry["upstream_request_id"]}
    unseen = []
    for line in truth:
        entry = named.pop(line["request_id"], None)
        if entry is None:
            unseen.append(line)
        else:
            found.counts[entry["certainty"]] += 1
            found.problems += [
                f"{line['request_id']}: {problem}\n  truth {_short(line)}\n  entry {_short(entry)}" for problem in _differences(line, entry)
            ]
    found.problems += [f"invented: {_short(entry)}" for entry in named.values()]
    _match_unseen(found, unseen, [entry for entry in attempts if not entry["upstream_request_id"]], sessions or {})
    return found


def _once(found: Comparison, what: str, ids: Iterable[str]) -> None:
    found.problems += [f"{what} {one} is there {times} times" for one, times in Counter(ids).items() if times > 1]


def _differences(line: Line, entry: Line) -> Iterable[str]:
    match entry["certainty"]:
        case "exact":
            for name in COUNTS:
                if line[name] != entry[name]:
                    yield f"{name} is {entry[name]} and was {line[name]}"
            for name in ("service_tier", "speed", "inference_geo"):
                if (line[name] or "") != (entry[name] or ""):
                    yield f"{name} is {entry[name]!r} and was {line[name]!r}"
            if line["cost_nanos"] != entry["cost_nanos"]:
                yield f"costs {entry['cost_nanos']} and did cost {line['cost_nanos']} nanos"
        case "partial":
            for name in CLASSES[:-1]:
                if line[name] != entry[name]:
                    yield f"{name} is {entry[name]} and was {line[name]}"
            if entry["output"] > max(line["output"], PLACEHOLDER_TOKENS):
                yield f"output is {entry['output']} and no more than {line['output']} was generated"
        case "ceiling":
            if line["cost_nanos"] > entry["cost_nanos"]:
                yield f"the ceiling {entry['cost_nanos']} is below the truth {line['cost_nanos']}"
            for name in ("output",):
                if line[name] > entry[name]:
                    yield f"the ceiling has {entry[name]} {name} and {line[name]} was generated"
        case "none":
            if line["billed"]:
                yield "nothing is booked, and it was billed"
            if entry["cost_nanos"]:
                yield "refused, and booked"
        case other:
            yield f"the certainty {other!r} is unknown"
    ceiling = entry.get("ceiling_nanos")
    if ceiling is not None and entry["cost_nanos"] > ceiling:
        yield f"costs {entry['cost_nanos']}, more than its ceiling {ceiling}"


def _match_unseen(found: Comparison, truth: list[Line], entries: list[Line], sessions: Mapping[str, str]) -> None:
    """Attempts whose head no gateway saw, against entries that know no id of the provider."""
    waiting: dict[str, list[Line]] = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: entry["cost_nanos"]):
        waiting[entry["session_id"]].append(entry)
    nameless = []
    for line in truth:
        session = sessions.get(line["body_sha256"])
        if session is None:
            nameless.append(line)
            continue
        entry = waiting[session].pop() if waiting[session] else None
        if entry is None:
            found.problems.append(f"missing: {_short(line)}")
        else:
            found.problems += [f"{session}: {problem}\n  truth {_short(line)}\n  entry {_short(entry)}" for problem in _unseen_problems(line, entry)]
            found.counts["unknown" if "unknown" in entry["flags"] else f"unseen {entry['certainty']}"] += 1
    left = sum(map(len, waiting.values()))
    for line in nameless:
        # Its body did not arrive whole: nothing was begun, and any entry that is left may be its own.
        if line["billed"] or left == 0:
            found.problems.append(f"missing, of no known session: {_short(line)}")
        left -= 1
    found.counts["arrived in part"] = len(nameless)
    found.counts["never arrived"] = left


def _unseen_problems(line: Line, entry: Line) -> Iterable[str]:
    if entry["certainty"] not in ("ceiling", "none"):
        yield f"{entry['certainty']} without having seen an answer"
    if entry["certainty"] == "none" and line["billed"]:
        yield "booked as refused, and it was billed"
    if entry["certainty"] == "ceiling":
        yield from _differences(line, entry)


def _short(line: Line) -> str:
    names = (
        "attempt", "attempt_id", "session_id", "request_id", "upstream_request_id", "outcome", "received_at", "started_at", "status", "certainty", "cut",
        "error_type", "flags", *COUNTS, "cost_nanos", "ceiling_nanos", "directives",
    )  # fmt: skip
    return " ".join(f"{name}={line[name]}" for name in names if line.get(name) not in (None, "", 0, []))
