"""What becomes of an export: its calls are booked, its metrics are kept beside the ledger.

The rules it protects: a call is priced by our own rate card, whatever Claude Code thinks it cost, and a difference is flagged; a call that the gateway
metered is matched by its request id and never booked again; an export that is sent twice changes nothing; metrics are never added to anything. It is
called in one thread and may wait for the database. Change with it: `wire/telemetry.py`, `ledger/sources.py`, docs/TELEMETRY-RECEIVER.md.
"""

from __future__ import annotations

import logging
from typing import Final

import msgspec
from msgspec.structs import replace

from tokenweir.ledger.imported import Account, ImportedCall, told_entry
from tokenweir.ledger.sources import CLAUDE_CODE_OTEL, Booked
from tokenweir.ledger_ports import ImportProgress, LedgerStore, TelemetrySums
from tokenweir.ports import Clock
from tokenweir.pricing.rate_card import RateCard
from tokenweir.pricing.rating import cost_nanos
from tokenweir.principals import Principal
from tokenweir.telemetry import TELEMETRY_METRIC_POINTS, TELEMETRY_RECORDS, log
from tokenweir.usage import Certainty, Metered, Segment
from tokenweir.wire.telemetry import ApiRequest, Reading

FLAG_COST_DIFFERS: Final = "told_cost_differs"
"""Claude Code's own idea of the cost is another one: it left something out of its tokens (web searches, an advisor), or knows another price."""
_COST_STEP_NANOS: Final = 1_000
"""Claude Code states its cost in whole micro-dollars."""


class TelemetryBooks:
    """Books exports under the key they came with."""

    def __init__(self, store: LedgerStore, sums: TelemetrySums, card: RateCard, clock: Clock) -> None:
        self._store = store
        self._sums = sums
        self._card = card
        self._clock = clock

    def take_logs(self, reading: Reading, principal: Principal) -> Booked:
        """Book the calls of an export; raises StoreUnavailable, and then nothing of it is booked."""
        if not reading.requests and not reading.refused:
            TELEMETRY_RECORDS.labels("skipped").inc(reading.skipped)
            return Booked()
        now_us = self._clock.now_us()
        account = Account(principal.organization_id, principal.team_id, principal.key_id)
        told = [told_entry(self._call(request, principal), account, self._card) for request in reading.requests]
        place = f"otlp/{principal.key_id}"
        before = next(iter(self._store.progress_of(CLAUDE_CODE_OTEL, [place])), None)
        if before is None:
            before = ImportProgress(source=CLAUDE_CODE_OTEL, place=place, first_run_at_us=now_us)
        progress = replace(
            before,
            rows_read=before.rows_read + len(told) + reading.skipped + reading.refused,
            rows_skipped=before.rows_skipped + reading.skipped,
            rows_refused=before.rows_refused + reading.refused,
            last_run_at_us=now_us,
            problem=reading.problem or before.problem,
        )
        booked = self._store.book_told(told, now_us=now_us, progress=progress)
        for outcome, count in (*msgspec.structs.asdict(booked).items(), ("skipped", reading.skipped), ("refused", reading.refused)):
            TELEMETRY_RECORDS.labels(outcome).inc(count)
        if reading.refused:
            log(logging.WARNING, "telemetry_refused", count=reading.refused, problem=reading.problem, key_id=principal.key_id)
        return booked

    def take_metrics(self, reading: Reading, principal: Principal) -> int:
        """Keep the points of an export that were not there yet; returns how many those were. Raises StoreUnavailable."""
        added = self._sums.add_points(reading.points, principal) if reading.points else 0
        TELEMETRY_METRIC_POINTS.labels("added").inc(added)
        TELEMETRY_METRIC_POINTS.labels("repeated").inc(len(reading.points) - added)
        TELEMETRY_METRIC_POINTS.labels("refused").inc(reading.refused)
        if reading.refused:
            log(logging.WARNING, "telemetry_refused", count=reading.refused, problem=reading.problem, key_id=principal.key_id)
        return added

    def _call(self, request: ApiRequest, principal: Principal) -> ImportedCall:
        metered = Metered(
            model=request.model,
            usage=request.usage,
            segments=(Segment("message", request.model, request.usage),),
            speed=request.speed,
        )
        ours, _ = cost_nanos(self._card, metered, at_us=request.started_at_us)
        differs = request.cost_nanos is not None and abs(ours - request.cost_nanos) >= _COST_STEP_NANOS
        return ImportedCall(
            source=CLAUDE_CODE_OTEL,
            started_at_us=request.started_at_us,
            ended_at_us=request.ended_at_us,
            metered=metered,
            request_id=request.request_id,
            own_id=request.event_id,
            # The client's word: complete as far as it goes, but without geography, service tier, server tools and iterations.
            certainty=Certainty.PARTIAL,
            stream=True,
            session_id=request.session_id,
            agent_id=request.agent_id,
            client=request.client,
            tags=tuple(dict.fromkeys((*principal.tags, *request.tags))),
            flags=(*request.flags, FLAG_COST_DIFFERS) if differs else request.flags,
        )
