"""The routes of Message Batches: create, list, retrieve, results, cancel, delete; and whose batches are whose.

A batch is found again by the key that created it (or by its workspace, if the scenario says so); to everyone else it does not exist. Batches live as long as
the process. What a rule or a header asks of a route happens after its work is done, so that an answer can be lost whose work was not; `refuse` comes before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenweir.simulator.batch_intake import BODY_BYTES_MAX, Intake
from tokenweir.simulator.batch_results import send_results
from tokenweir.simulator.batch_scanner import Scanner
from tokenweir.simulator.batch_work import BatchJob, Origin
from tokenweir.simulator.batches import Batch, plan_delays, plan_timing
from tokenweir.simulator.composition import mint
from tokenweir.simulator.connection import Exchange
from tokenweir.simulator.directives import Directives, header_directives
from tokenweir.simulator.intake import check_version
from tokenweir.simulator.paging import list_page
from tokenweir.simulator.refusals import Refusal, invalid
from tokenweir.simulator.replies import request_id_line, send_json, send_refusal
from tokenweir.simulator.scenario import BATCHES, Occasion
from tokenweir.simulator.spool import Spool
from tokenweir.simulator.world import World, asked_refusal, check_refusal, read_betas

ROOT = BATCHES
_METHODS = {"": ("GET", "DELETE"), "results": ("GET",), "cancel": ("POST",)}


class BatchRoutes:
    """All batches of one simulator."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._jobs: dict[str, BatchJob] = {}
        self._created = 0
        self._requests = 0
        world.on_advance(self._nudge)

    def state(self) -> dict[str, int]:
        """Batches by status, and the lines that wait."""
        found = {"in_progress": 0, "canceling": 0, "ended": 0, "queued_lines": 0}
        for job in self._jobs.values():
            found[job.batch.status] += 1
            found["queued_lines"] += job.batch.left
        return found

    def stop(self) -> None:
        """No line is worked on any more."""
        for job in self._jobs.values():
            job.stop()

    async def answer(self, exchange: Exchange, method: str, query: str) -> None:
        """Answer one request; raises Ended if it comes to that."""
        request_id = self._world.next_id()
        call = _Call(exchange, method, query, request_id_line(request_id))
        try:
            await self._route(call)
        except Refusal as refusal:
            await send_refusal(exchange, refusal, request_id, call.identity)

    async def _route(self, call: _Call) -> None:
        ident, _, action = call.exchange.path.removeprefix(ROOT).removeprefix("/").partition("/")
        if ident and action not in _METHODS:
            raise Refusal(404, "not_found_error", "Not found")
        if call.method not in (_METHODS[action] if ident else ("POST", "GET")):
            raise Refusal(405, "invalid_request_error", "Method Not Allowed")
        self._admit(call)
        if not ident and call.method == "POST":
            await self._create(call)
            return
        wanted = await self._wanted(call)
        if not ident:
            await self._list(call, wanted)
            return
        job = self._find(ident, call)
        if action == "results":
            await self._results(call, job, wanted)
        elif call.method == "DELETE":
            await self._delete(call, job, wanted)
        else:
            if action == "cancel":
                self._cancel(job)
            await self._show(call, job, wanted)

    def _admit(self, call: _Call) -> None:
        """Who asks, and whether they ask too often."""
        world, facts = self._world, {"key_sha256": ""}
        call.workspace = world.authenticate(call.exchange, facts)
        call.key_sha256 = facts["key_sha256"]
        call.identity = world.identity(call.workspace)
        check_version(call.exchange.header(b"anthropic-version"))
        limits = world.limits.batching(call.workspace, now_s=world.now_s())
        limits.admit(0, described=self._described(), now_s=world.now_s())

    async def _wanted(self, call: _Call, carried: Mapping[str, Any] | None = None) -> Directives:
        """What is asked of this route; raises Refusal if that is a refusal."""
        self._requests += 1
        exchange = call.exchange
        occasion = Occasion(self._requests, exchange.path, "", call.workspace, stream=False, headers=exchange.headers, method=call.method)
        wanted = self._world.directives(occasion, carried or {}, header_directives(exchange.headers))
        if wanted.refuse:
            await exchange.pause(wanted.stall_head)
            raise asked_refusal(wanted)
        return wanted

    async def _create(self, call: _Call) -> None:
        rows, intake = await _take_in(call.exchange)
        wanted = await self._wanted(call, intake.batch_directives)
        check_refusal(wanted.batch_error)
        world = self._world
        queued = sum(job.batch.left for job in self._jobs.values() if job.origin.workspace == call.workspace)
        world.limits.check_queue(queued, intake.count, described=self._described())
        self._created += 1
        batch = Batch(
            mint("msgbatch_01", world.seed, world.attempts, b"batch%d" % self._created),
            count=intake.count,
            created_us=world.now_us(),
            timing=plan_timing(world.scenario.batches, wanted),
            seed=world.seed,
            delays=plan_delays(intake.delays, world.scenario.batches.speed),
            hangs=wanted.batch_hangs,
        )
        origin = Origin(call.workspace, call.key_sha256, call.exchange.header(b"anthropic-version"), read_betas(call.exchange))
        job = self._jobs[batch.id] = BatchJob(world, batch, rows, wanted=wanted, origin=origin)
        job.start()
        await self._show(call, job, wanted)

    async def _list(self, call: _Call, wanted: Directives) -> None:
        jobs = [job for job in reversed(self._jobs.values()) if self._owns(call, job)]
        page = list_page(call.query, jobs, ident=lambda job: job.batch.id, show=lambda job: self._shown(call, job))
        await send_json(call.exchange, page, call.lines, wanted)

    async def _show(self, call: _Call, job: BatchJob, wanted: Directives) -> None:
        await send_json(call.exchange, self._shown(call, job), call.lines, wanted)

    async def _results(self, call: _Call, job: BatchJob, wanted: Directives) -> None:
        batch = job.batch
        if batch.status != "ended":
            raise Refusal(404, "not_found_error", f"Message Batch {batch.id} has not ended processing: its results are not available yet")
        if batch.archived(self._world.now_us()):
            raise Refusal(404, "not_found_error", f"The results of Message Batch {batch.id} are no longer available")
        await send_results(call.exchange, job.results, call.lines, wanted)

    def _cancel(self, job: BatchJob) -> None:
        if job.batch.status == "ended":
            raise invalid(f"Message Batch {job.batch.id} has ended processing and cannot be canceled")
        job.cancel()

    async def _delete(self, call: _Call, job: BatchJob, wanted: Directives) -> None:
        batch = job.batch
        if batch.status != "ended":
            raise invalid(f"Message Batch {batch.id} is still processing: cancel it, or wait until it has ended, before it is deleted")
        del self._jobs[batch.id]
        await send_json(call.exchange, {"id": batch.id, "type": "message_batch_deleted"}, call.lines, wanted)

    def _find(self, ident: str, call: _Call) -> BatchJob:
        job = self._jobs.get(ident)
        if job is None or not self._owns(call, job):
            raise Refusal(404, "not_found_error", f"Message Batch {ident} not found")
        return job

    def _owns(self, call: _Call, job: BatchJob) -> bool:
        if self._world.scenario.batches.owner == "workspace":
            return job.origin.workspace == call.workspace
        return job.origin.key_sha256 == call.key_sha256

    def _shown(self, call: _Call, job: BatchJob) -> dict[str, Any]:
        host = call.exchange.header(b"host")
        return job.batch.shown(self._world.now_us(), f"http://{host}{ROOT}/{job.batch.id}/results")

    def _nudge(self) -> None:
        for job in self._jobs.values():
            job.nudge()

    def _described(self) -> str:
        return f"org: {self._world.organization}, Message Batches"


class _Call:
    """One request to a route, and who asks."""

    __slots__ = ("_request_id_line", "exchange", "identity", "key_sha256", "method", "query", "workspace")

    def __init__(self, exchange: Exchange, method: str, query: str, request_id: bytes) -> None:
        self.exchange = exchange
        self.method = method
        self.query = query
        self.workspace = ""
        self.key_sha256 = ""
        self.identity = b""
        self._request_id_line = request_id

    @property
    def lines(self) -> bytes:
        """The header lines of an answer."""
        return self._request_id_line + self.identity


async def _take_in(exchange: Exchange) -> tuple[Spool, Intake]:
    """Read a body to its end, whatever is wrong with it: a client that is still sending would not read the refusal."""
    scanner, intake, rows = Scanner(), Intake(), Spool()
    fault: Refusal | None = None
    async for piece in exchange.pieces(BODY_BYTES_MAX):
        if fault is not None:
            continue
        try:
            for element in scanner.feed(piece):
                intake.check(element)
                rows.append(element)
        except Refusal as refusal:
            fault, rows = refusal, Spool()
    if fault is not None:
        raise fault
    scanner.close()
    intake.finish()
    return rows, intake
