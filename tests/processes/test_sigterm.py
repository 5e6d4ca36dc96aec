"""SIGTERM under load: exit code 0, every stream ended in order, everything booked."""

from __future__ import annotations

import asyncio
import signal
import time

from processes.books import compare
from processes.calling import Broken, Call, ask
from processes.crowd import Crowd
from processes.serving import running_tokenweir
from simulation import running_simulator


def test_sigterm_under_load_ends_with_0_and_everything_booked(tmp_path):
    """The crowd goes on asking while the gateway ends: no stream breaks without a word, no attempt is unknown, and the books agree."""
    with running_simulator(tmp_path) as simulator, running_tokenweir(tmp_path / "weir", simulator.url) as weir:
        crowd = Crowd(lambda: weir.url, [weir.key()], clients=24, seed=5)

        async def main() -> int:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(crowd.run())
                while len(crowd.acknowledged) < 100:  # noqa: ASYNC110 - the crowd has no event for it, and a test may look
                    await asyncio.sleep(0.01)
                code = await asyncio.to_thread(weir.stop)
                crowd.end()
            return code

        assert asyncio.run(main()) == 0
        while simulator.state()["open"]:
            time.sleep(0.01)
        truth, ledger = simulator.journal(), weir.ledger()
        assert weir.verify().returncode == 0
    compare(truth, ledger, sessions=crowd.sessions).agree()
    assert not [entry for entry in ledger if "unknown" in entry["flags"]]
    exact = {entry["request_id"] for entry in ledger if entry["certainty"] == "exact"}
    assert set(crowd.acknowledged.values()) <= exact


def test_streams_beyond_the_deadline_end_with_an_error_event(tmp_path):
    """Readiness drops at once; streams finish up to the deadline, then end with an error event; what was streamed is booked; exit code 0."""
    with (
        running_simulator(tmp_path) as simulator,
        running_tokenweir(tmp_path / "weir", simulator.url, GATEWAY__SHUTDOWN_TIMEOUT_MS="1500") as weir,
    ):
        key = weir.key()
        short = ask("short", stream=True, directives="output=40;stall=500;stall_after=4")
        endless = [ask(f"endless-{events}", stream=True, directives=f"output=40;stall=-1;stall_after={events}") for events in range(1, 9)]
        waiting = ask("waiting", directives="output=40;ttfb=-1")

        async def main() -> tuple:
            calls = [Call(weir.url, key, asked) for asked in (short, *endless, waiting)]
            for calling in calls:
                await calling.open()
            for calling, events in zip(calls[:-1], (4, *range(1, 9)), strict=True):
                await calling.read_head()
                await calling.read_events(events)
            late = Call(weir.url, key, ask("late"))
            await late.open()  # connected before the end begins, answered after it
            assert weir.process is not None
            weir.process.send_signal(signal.SIGTERM)
            answers = await asyncio.gather(*(rest(calling) for calling in calls), late.finish())
            return answers, await asyncio.to_thread(weir.reap)

        (finished, *ended, silent, late), code = asyncio.run(main())
        truth, ledger = simulator.journal(), weir.ledger()
    assert code == 0
    assert finished.looks_complete
    for answer in ended:
        assert answer.whole
        name, event = answer.events[-1]
        assert (name, event["error"]["type"]) == ("error", "overloaded_error")
        assert event["error"]["message"].startswith("Tokenweir: ")
    for answer in (silent, *([late] if late.status != 200 else [])):
        assert (answer.status, answer.json["error"]["type"]) == (529, "overloaded_error")
    compare(truth, ledger, sessions={asked.sha256: asked.session for asked in (short, *endless, waiting)}).agree()
    certainties = {entry["session_id"]: (entry["certainty"], entry["cut"]) for entry in ledger}
    assert certainties["short"] == ("exact", None)
    assert certainties["waiting"] == ("ceiling", "shutdown")
    assert {certainties[asked.session] for asked in endless} == {("partial", "shutdown")}


async def rest(calling: Call):
    """Read on to the end; the head may have been read."""
    try:
        if not calling.answer.status:
            await calling.read_head()
        async for _ in calling.pieces():
            pass
    except Broken:
        pass
    await calling.leave()
    return calling.answer
