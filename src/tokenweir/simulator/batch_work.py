"""The work on batches: each line becomes a line of results and a line of the journal of truth, at the time that `batches` says.

A line is answered exactly as the request would be alone (the same composition, tokens, prompt cache, refusals and directives), but in the batch tier. Lines
that fail, expire or are canceled are written to the journal too, and bill nothing. One task per batch; it gives way to others after a few lines.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import msgspec

from tokenweir.simulator.batch_intake import Row, read_row
from tokenweir.simulator.batches import ERRORED, SUCCEEDED, Batch, Close, Over, Wait, Work
from tokenweir.simulator.composition import Tally, compose
from tokenweir.simulator.directives import PLAIN, Directives
from tokenweir.simulator.intake import Ask, body_directives, decode_body, read_ask
from tokenweir.simulator.refusals import Refusal, envelope, invalid, named
from tokenweir.simulator.scenario import Occasion
from tokenweir.simulator.spool import Spool
from tokenweir.simulator.stream import bill_of, message_object
from tokenweir.simulator.truth import Attempt, Bill
from tokenweir.simulator.world import World, asked_refusal

_LINES_AT_ONCE = 16
_WAIT_S_MAX = 3_600.0
_encode = msgspec.json.encode


class BatchJob:
    """A batch with its requests, its results, and all that working on it needs."""

    def __init__(self, world: World, batch: Batch, rows: Spool, *, wanted: Directives, origin: Origin) -> None:
        self.batch = batch
        self.origin = origin
        self.results = Spool()
        self._world = world
        self._rows = rows
        self._wanted = wanted
        self._nudge = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """The simulator is ending."""
        if self._task is not None:
            self._task.cancel()

    def nudge(self) -> None:
        """Something changed: the clock was moved, or the batch canceled."""
        self._nudge.set()

    def cancel(self) -> None:
        """Initiate the cancellation."""
        self.batch.cancel(self._world.now_us())
        self.nudge()

    async def _run(self) -> None:
        while True:
            # The answer to the creation goes out before the first line is worked on.
            await asyncio.sleep(0)
            for _ in range(_LINES_AT_ONCE):
                now_us = self._world.now_us()
                step = self.batch.step(now_us)
                if isinstance(step, Over):
                    self._rows = Spool()
                    return
                if isinstance(step, Wait):
                    await self._wait((step.until_us - now_us) / 1e6)
                else:
                    self._resolve(step)

    async def _wait(self, seconds: float) -> None:
        """Until then, or until something changes."""
        try:
            async with asyncio.timeout(min(_WAIT_S_MAX, seconds)):
                await self._nudge.wait()
        except TimeoutError:
            pass
        self._nudge.clear()

    def _resolve(self, step: Work | Close) -> None:
        row = read_row(self._rows.record(step.index))
        attempt = self._world.next_attempt(self.batch.created_us)
        attempt.workspace = self.origin.workspace
        attempt.body_sha256 = hashlib.sha256(row.params).hexdigest()
        attempt.facts.update(batch_id=self.batch.id, custom_id=row.custom_id, key_sha256=self.origin.key_sha256)
        if isinstance(step, Close):
            self._finish(attempt, row, step.outcome, {"type": step.outcome}, status=0)
            return
        try:
            message, bill = self._answer(attempt, row, step.index)
        except Exception as failure:
            refusal = _as_refusal(failure)
            error = envelope(refusal.kind, refusal.message, code=refusal.code, request_id=attempt.request_id)
            attempt.facts["error_type"] = refusal.kind
            self._finish(attempt, row, ERRORED, {"type": "errored", "error": error}, status=refusal.status)
        else:
            self._finish(attempt, row, SUCCEEDED, {"type": "succeeded", "message": message}, status=200, bill=bill)

    def _answer(self, attempt: Attempt, row: Row, index: int) -> tuple[dict[str, Any], Bill]:
        world, origin = self._world, self.origin
        body = bytes(row.params)
        values = decode_body(body)
        model = values.get("model")
        attempt.facts["model"] = model if isinstance(model, str) else ""
        occasion = Occasion(
            attempt.number, "", attempt.facts["model"], origin.workspace, stream=False, headers=(), method="", custom_id=row.custom_id
        )
        wanted = world.directives(occasion, body_directives(values))
        if wanted is not PLAIN:
            attempt.facts["directives"] = msgspec.to_builtins(wanted)
        if wanted.refuse:
            raise asked_refusal(wanted)
        if _drawn(self._wanted.batch_errors, world.seed, f"{self.batch.id}:{index}"):
            raise named(self._wanted.batch_error, message=self._wanted.message)
        ask = _read_line(values, world, origin)
        now_s = world.now_s()
        space = f"{origin.workspace}/{ask.model.id}"
        split = world.cache.split(ask.blocks, space=space, settings=ask.cache_settings, minimum=ask.model.cache_minimum, now_s=now_s)
        digest = bytes.fromhex(attempt.body_sha256)
        answer = compose(ask, split, wanted, seed=world.seed, attempt=attempt.number, body_digest=digest, prose=world.prose)
        answer = msgspec.structs.replace(answer, service_tier=wanted.tier or "batch")
        world.cache.store(split, started_s=now_s)
        outcome = Tally(answer).add_all().outcome()
        attempt.facts.update(message_id=answer.message_id, stop_reason=answer.stop_reason)
        return message_object(answer, outcome, wanted), bill_of(answer, outcome, wanted)

    def _finish(self, attempt: Attempt, row: Row, outcome: str, result: dict[str, Any], *, status: int, bill: Bill | None = None) -> None:
        """Write the line of the journal, then that of the results."""
        line = _encode({"custom_id": row.custom_id, "result": result}) + b"\n"
        attempt.end(outcome, now_us=self._world.now_us(), status=status, bytes_sent=len(line), bill=bill)
        self._world.note(outcome)
        self.results.append(line)
        self.batch.resolve(outcome)


class Origin(msgspec.Struct, frozen=True):
    """Who created a batch, and how it was asked for."""

    workspace: str
    key_sha256: str
    version: str
    betas: frozenset[str]


def _read_line(values: dict[str, Any], world: World, origin: Origin) -> Ask:
    """Check the request of a line: as one alone, and without what batches do not take."""
    if values.get("stream"):
        raise invalid("stream: streaming is not supported for requests in a Message Batch")
    for name in ("speed", "thread"):
        if name in values:
            raise invalid(f"{name}: Extra inputs are not permitted for requests in a Message Batch")
    ask = read_ask(values, world.catalog, version=origin.version, betas=origin.betas)
    if ask.max_tokens == 0:
        raise invalid("max_tokens: 0 is not supported for requests in a Message Batch")
    return ask


def _as_refusal(failure: Exception) -> Refusal:
    """What a line's failure is to its owner. A fault of the simulator is told to the operator, and the batch goes on: it would never end otherwise."""
    if isinstance(failure, Refusal):
        return failure
    asyncio.get_running_loop().call_exception_handler({"message": "a line of a batch could not be answered", "exception": failure})
    return Refusal(500, "api_error", "Internal server error")


def _drawn(share: float, seed: int, subject: str) -> bool:
    """Whether a subject is among a share of all."""
    if not share:
        return False
    draw = int.from_bytes(hashlib.blake2b(f"{seed}:{subject}".encode(), digest_size=6).digest(), "big")
    return draw < share * (1 << 48)
