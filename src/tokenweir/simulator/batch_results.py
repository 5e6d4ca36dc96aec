"""The results of a batch on their way out: JSON lines, streamed from the spool, as slowly and as broken as was asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from tokenweir.simulator.connection import Exchange
from tokenweir.simulator.directives import Directives
from tokenweir.simulator.replies import prelude
from tokenweir.simulator.spool import Spool

CONTENT_TYPE = b"content-type: application/x-jsonl\r\n"
_PIECE_BYTES = 64 * 1024


async def send_results(exchange: Exchange, results: Spool, lines: bytes, wanted: Directives) -> None:
    """Answer 200 with all lines; raises Ended if it comes to that. `lines` are further header lines."""
    await prelude(exchange, wanted)
    await exchange.start(200, CONTENT_TYPE + lines, length=None, slow_ms=wanted.slow_head)
    left = results.size if wanted.truncate is None else wanted.truncate
    singly = bool(wanted.pace or wanted.stall)
    for number, piece in enumerate(_lines(results) if singly else _pieces(results)):
        if wanted.stall and number == wanted.stall_after:
            await exchange.pause(wanted.stall)
        if wanted.pace and number:
            await exchange.pause(wanted.pace)
        await exchange.write(piece[:left])
        left -= len(piece)
        if left <= 0:
            break
        # A reader as fast as we are would never make us wait, and one long file would keep all others from their turn.
        await asyncio.sleep(0)
    exchange.finish(trailing=wanted.trailing)


def _lines(results: Spool) -> Iterator[bytes]:
    return (results.record(index) for index in range(len(results)))


def _pieces(results: Spool) -> Iterator[bytes]:
    at = 0
    while piece := results.read(at, _PIECE_BYTES):
        at += len(piece)
        yield piece
