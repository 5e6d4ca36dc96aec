"""Every metric, label and log event of Tokenweir in one place, with its meaning.

Labels come from small closed sets, never from a key, model text or prompt, so the number of series is bounded. Logs are JSON, one line a record,
control characters escaped; no record holds a body, a header value or a secret. docs/TELEMETRY.md is checked against this module by a test.
"""

from __future__ import annotations

import json
import logging
import sys
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any, Literal, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

REGISTRY = CollectorRegistry(auto_describe=True)


class Totals(Collector):
    """A counter for the hot path: adding is one dictionary entry, without a lock, from one thread; it becomes a metric when somebody asks."""

    def __init__(self, name: str, meaning: str, labels: Sequence[str] = ()) -> None:
        self._name, self._documentation, self._labelnames, self._type = name, meaning, tuple(labels), "counter"
        self.values: defaultdict[tuple[str, ...], int] = defaultdict(int)
        REGISTRY.register(self)

    def describe(self) -> Iterable[CounterMetricFamily]:
        """What it is called, without its values."""
        return [CounterMetricFamily(self._name, self._documentation, labels=self._labelnames)]

    def collect(self) -> Iterable[CounterMetricFamily]:
        """What it has come to."""
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labelnames)
        for labels, value in list(self.values.items()):
            family.add_metric(labels, value)
        return [family]


class Times(Collector):
    """A histogram for the hot path: one search in a short list, without a lock, from one thread."""

    def __init__(self, name: str, meaning: str, bounds_s: Sequence[float]) -> None:
        self._name, self._documentation, self._labelnames, self._type = name, meaning, (), "histogram"
        self._bounds_s = tuple(bounds_s)
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum_s = 0.0
        REGISTRY.register(self)

    def observe(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._bounds_s, seconds)] += 1
        self._sum_s += seconds

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """What it is called, without its values."""
        return [HistogramMetricFamily(self._name, self._documentation)]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """What it has come to."""
        reached = accumulate(self._counts)
        buckets = [(str(float(bound)), count) for bound, count in zip((*self._bounds_s, float("inf")), reached, strict=True)]
        family = HistogramMetricFamily(self._name, self._documentation)
        family.add_metric([], [("+Inf" if bound == "inf" else bound, count) for bound, count in buckets], self._sum_s)
        return [family]


_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

REQUESTS = Totals("tokenweir_requests", "Requests answered, by route and status class.", ["route", "status"])
ATTEMPTS = Totals("tokenweir_attempts", "Upstream attempts settled, by certainty.", ["certainty"])
TOKENS = Totals("tokenweir_tokens", "Tokens settled, by class.", ["token_class"])
COST_NANOS = Totals("tokenweir_cost_nanos", "Cost settled, in nano-USD.")
UNPRICED = Counter("tokenweir_unpriced_attempts", "Attempts booked at the conservative rate because the model has no price.", registry=REGISTRY)
USAGE_FLAGS = Counter("tokenweir_usage_flags", "Readings of usage that need a look, by kind of flag.", ["flag"], registry=REGISTRY)
LIMIT_DECISIONS = Totals(
    "tokenweir_limit_decisions",
    "What limits decided, by outcome, and by the resource of the limit that decided it (all: admitted).",
    ["outcome", "resource"],
)
RETRIES = Counter("tokenweir_upstream_retries", "Attempts sent again before the first byte, by reason.", ["reason"], registry=REGISTRY)
CLIENTS_LEFT = Counter("tokenweir_clients_left", "Clients that left before their answer was complete, by policy.", ["policy"], registry=REGISTRY)
OPEN_REQUESTS = Gauge("tokenweir_open_requests", "Requests being served now.", registry=REGISTRY)
FIRST_BYTE_SECONDS = Times("tokenweir_upstream_first_byte_seconds", "Time from sending an attempt to the first byte of its answer.", _SECONDS)
HEADROOM = Gauge("tokenweir_upstream_headroom", "What the provider's headers last said remains, by resource.", ["resource"], registry=REGISTRY)
JOURNAL_FULL = Gauge("tokenweir_journal_full", "1 while new paid work is refused for want of disk.", registry=REGISTRY)
JOURNAL_BACKLOG_BYTES = Gauge("tokenweir_journal_backlog_bytes", "Journal not yet booked.", registry=REGISTRY)
REFUSED_KEYS = Counter("tokenweir_refused_keys", "Keys that were not accepted, by reason.", ["reason"], registry=REGISTRY)
DIRECTORY_FAILURES = Counter("tokenweir_directory_failures", "Reads of the key directory that failed.", registry=REGISTRY)
DIRECTORY_STALE_SECONDS = Gauge("tokenweir_directory_stale_seconds", "Age of the key snapshot.", registry=REGISTRY)
TELEMETRY_REQUESTS = Counter(
    "tokenweir_telemetry_requests", "Exports that the receiver answered, by signal and status class.", ["signal", "status"], registry=REGISTRY
)
TELEMETRY_RECORDS = Counter(
    "tokenweir_telemetry_records", "Log records received from Claude Code, by what became of them.", ["outcome"], registry=REGISTRY
)
TELEMETRY_METRIC_POINTS = Counter(
    "tokenweir_telemetry_metric_points", "Metric points received from Claude Code, by what became of them.", ["outcome"], registry=REGISTRY
)
QUEUE_WAITING = Gauge("tokenweir_queue_waiting", "Requests that wait for room in a limit now.", registry=REGISTRY)
QUEUE_WAIT_SECONDS = Times("tokenweir_queue_wait_seconds", "Time that requests waited for room in limits, admitted at last or not.", _SECONDS)
QUEUE_OUTCOMES = Totals("tokenweir_queue_outcomes", "Requests that went into a queue, by how their waiting ended.", ["outcome"])
PROVIDER_MODELS = Gauge("tokenweir_provider_models", "Models that the provider listed last, by lifecycle.", ["lifecycle"], registry=REGISTRY)

Event: TypeAlias = Literal[
    "ready",  # a role is serving; fields: role, url
    "shutting_down",  # SIGTERM or SIGINT was received; fields: role, open_requests
    "stopped",  # a role has ended in order; fields: role
    "child_exited",  # the supervisor saw a role end unasked; fields: role, code, restart_in_ms
    "request_failed",  # the gateway itself failed to serve a request; fields: request_id, error
    "refused_connection",  # bytes that are not HTTP, or a head too large or too slow; fields: reason
    "journal_full",  # no disk for new paid work; fields: detail
    "journal_resumed",  # there is room again
    "journal_broken",  # an fsync failed: the process ends; fields: detail
    "journal_corrupt",  # a frame in a segment does not check; fields: segment, offset
    "directory_unavailable",  # the key snapshot could not be refreshed; fields: error
    "credential_unusable",  # an upstream credential cannot be read or may not be used; fields: credential_id, error
    "limits_unread",  # what was used of limits, or corrected since, could not be read; fields: error
    "store_unavailable",  # the worker cannot reach the database; fields: error
    "store_back",  # and now it can
    "limit_store_unavailable",  # the shared store of limits does not answer: budgets refuse, rates fall to a share; fields: error
    "limit_store_back",  # it answers (also once at the start)
    "holds_ended",  # what a dead gateway held of limits was settled by the ledger; fields: count, writer
    "holds_not_ended",  # the store of limits does not answer, so what a dead gateway holds stays held for now; fields: error, writer
    "attempts_recovered",  # attempts of a dead gateway booked at their ceiling; fields: count, writer
    "telemetry_refused",  # records of an export could not be believed; fields: count, problem, key_id
    "models_changed",  # the provider's list of models is another one; fields: new, deprecated, retired, gone
    "models_unavailable",  # the provider's list of models could not be read; fields: error
    "usage_flag",  # a usage object needs a look; fields: flag, attempt_id
]
"""Every log event, with its meaning."""


class JsonLines(logging.Formatter):
    """One JSON object a line; strings are escaped, so no field can start a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def start_logging(level: str) -> None:
    """Send all logs of this process to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.getLevelNamesMapping()[level.upper()])
    for noisy in ("uvicorn", "uvicorn.error", "asyncio", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def log(level: int, event: Event, **fields: object) -> None:
    """Record an event of the list above."""
    logging.getLogger("tokenweir").log(level, event, extra={"fields": fields})


def exposition() -> bytes:
    """All metrics in Prometheus' text format."""
    return generate_latest(REGISTRY)
