"""The real gateway process against hostile clients: it serves on, books exactly what it served, and ends when it is told to."""

from __future__ import annotations

import asyncio
import re
import signal
from pathlib import Path
from urllib.parse import urlsplit

from gateway.hostile import ROWS, Client
from gateway.playbook import KEY
from processes.books import compare
from processes.calling import Broken, Call, ask
from processes.serving import running_tokenweir
from simulation import running_simulator


def port_of(weir) -> int:
    return urlsplit(weir.url).port or 0


def rss_bytes(pid: int) -> int:
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) * 1024


def test_of_everything_hostile_exactly_the_admitted_requests_are_sent_and_booked(tmp_path):
    """The whole table at once, on connections side by side, and a healthy client among them."""
    with running_simulator(tmp_path) as simulator, running_tokenweir(tmp_path / "weir", simulator.url) as weir:
        key = weir.key().encode()

        async def row(sent: bytes, statuses: list[int]) -> None:
            async with Client.of(port_of(weir)) as client:
                client.send(sent.replace(KEY.encode(), key))
                answers = [await client.answer() for _ in statuses]
                assert [answer[0] for answer in answers if answer] == statuses, sent[:200]

        async def healthy() -> None:
            for no in range(20):
                call = Call(weir.url, key.decode(), ask(f"healthy-{no}"))
                await call.open()
                assert (await call.finish()).looks_complete

        async def main() -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(healthy())
                for sent, statuses, _ in ROWS.values():
                    tasks.create_task(row(sent, statuses))

        asyncio.run(main())
        assert weir.stop() == 0
        truth, ledger = simulator.journal(), weir.ledger()
        assert weir.verify().returncode == 0
    admitted = sum(forwarded for _, _, forwarded in ROWS.values()) + 20
    assert len(truth) == len(ledger) == admitted
    compare(truth, ledger).agree()
    assert {entry["certainty"] for entry in ledger} == {"exact"}


def test_nobody_who_holds_a_connection_can_hold_the_process(tmp_path):
    """Idle, in the middle of a head, in the middle of a body, and one that never reads: SIGTERM ends them all, everything is booked, exit code 0."""
    settings = {"GATEWAY__SHUTDOWN_TIMEOUT_MS": "500"}
    with running_simulator(tmp_path, options=("--pace", "0")) as simulator, running_tokenweir(tmp_path / "weir", simulator.url, **settings) as weir:
        key = weir.key()
        deaf = ask("deaf", stream=True, directives="output=64000;stall=-1;stall_after=4000", max_tokens=64000)

        async def main() -> int:
            port = port_of(weir)
            idle, head, body = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
            head[1].write(b"POST /v1/messages HTTP/1.1\r\nx-api-key: ")
            body[1].write(f"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\ncontent-length: 100\r\n\r\n{{".encode())
            call = Call(weir.url, key, deaf)
            await call.open(read_buffer_bytes=4096)
            await call.read_head()
            assert weir.process is not None
            weir.process.send_signal(signal.SIGTERM)
            code = await asyncio.to_thread(weir.reap)
            for _, writer in (idle, head, body):
                writer.close()
            try:
                async for _ in call.pieces():
                    pass
            except Broken:
                pass
            await call.leave()
            assert not call.answer.looks_complete
            return code

        assert asyncio.run(main()) == 0
        ledger = weir.ledger()
        assert weir.verify().returncode == 0
    (entry,) = ledger
    assert (entry["certainty"], entry["flags"]) == ("partial", [])


def test_many_clients_that_never_read_cost_little_each(tmp_path):
    """Backpressure reaches the provider: what is held for each is a few small buffers, not its answer."""
    clients = 30
    with running_simulator(tmp_path, options=("--pace", "0")) as simulator, running_tokenweir(tmp_path / "weir", simulator.url) as weir:
        key = weir.key()
        gateway = weir.pids["gateway"]

        async def main() -> int:
            before = rss_bytes(gateway)
            calls = [Call(weir.url, key, ask(f"deaf-{no}", stream=True, directives="output=64000", max_tokens=64000)) for no in range(clients)]
            for call in calls:
                await call.open(read_buffer_bytes=4096)
            for call in calls:
                await call.read_head()
            peaks = []
            while len(peaks) < 20 or peaks[-1] > 1.02 * peaks[-10]:
                peaks.append(rss_bytes(gateway))
                await asyncio.sleep(0.05)
            for call in calls:
                await call.leave()
            return max(peaks) - before

        grown = asyncio.run(main())
        assert weir.stop() == 0
        assert len(weir.ledger()) == clients
    assert grown < clients * 400_000 + 10_000_000
