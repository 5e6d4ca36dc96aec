"""How fast the worker books: a journal written in advance by the journal's own writer, booked by the worker role as `tokenweir serve` runs it.

The worker's start is measured on an empty journal first and taken off. Afterwards the ledger must hold every attempt with its tokens.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import candidates
import processes
import upstream
from processes import BenchFailed
from verification import booked_sums


def measure_bookkeeping(work: Path, *, attempts: int, core: int, timeout_s: float = 300.0) -> dict[str, Any]:
    """Entries per second and CPU time per entry, from journal to ledger with rollups."""
    data_dir = work / f"bookkeeping-{time.monotonic_ns()}"
    created = json.loads(candidates.ask_tokenweir(["key", "create", "--team", "bench", "--name", "bench", "--json"], data_dir))
    start_s, start_cpu_s = _run_worker(work, data_dir, core=core, timeout_s=60.0)
    command = [sys.executable, str(Path(__file__)), str(data_dir), str(attempts), created["id"]]
    written = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    if written.returncode != 0:
        raise BenchFailed(f"the journal could not be written:\n{written.stderr[-1500:]}")
    expected = json.loads(written.stdout)
    elapsed_s, cpu_s = _run_worker(work, data_dir, core=core, timeout_s=timeout_s)
    booked = booked_sums(data_dir)
    differences = {name: [expected[name], booked[name]] for name in expected if expected[name] != booked[name]}
    shutil.rmtree(data_dir, ignore_errors=True)
    return {
        "attempts": attempts,
        "entries_per_s": round(attempts / max(elapsed_s - start_s, 1e-3)),
        "cpu_us_per_entry": round((cpu_s - start_cpu_s) * 1e6 / attempts, 2),
        "journal_bytes_per_attempt": round(expected_bytes(written.stderr) / attempts, 1),
        "differences": differences,
    }


def expected_bytes(line: str) -> int:
    """The size of the journal, which its writer says on its standard error."""
    return int(line.strip().splitlines()[-1])


def _run_worker(work: Path, data_dir: Path, *, core: int, timeout_s: float) -> tuple[float, float]:
    """Run the worker until it rests; seconds from its start to its last work, and the CPU time it took."""
    log = work / "worker.log"
    environment = {"TOKENWEIR_UPSTREAM__API_KEY": upstream.UPSTREAM_KEY}
    command = [str(candidates.TOKENWEIR), "serve", "--role", "worker", "--data-dir", str(data_dir)]
    begun = time.monotonic()
    # The worker ends when its standard input does, so it gets one that stays open.
    with processes.running(command, core=core, log=log, environment=environment, stdin=subprocess.PIPE) as process:
        processes.ready_line(process, name="the worker", log=log, timeout_s=60)
        last_work, before = time.monotonic(), processes.cpu_s(process.pid)
        quiet_until = time.monotonic() + 1.5
        while time.monotonic() < quiet_until:
            if time.monotonic() - begun > timeout_s:
                raise BenchFailed(f"the worker did not book within {timeout_s:.0f} s")
            time.sleep(0.1)
            now = processes.cpu_s(process.pid)
            if now - before > 0.025:  # More than looking for work takes.
                last_work, quiet_until = time.monotonic(), time.monotonic() + 1.5
            before = now
        return last_work - begun, before


def write_journal(data_dir: Path, attempts: int, key_id: str) -> dict[str, int]:
    """Write that many intents and settlements with the journal's own writer, as from one hour of traffic of one gateway; returns their sums."""
    from tokenweir.app import IdMint, SystemClock
    from tokenweir.ledger.entries import Intent, Settlement
    from tokenweir.metering.journal import JournalWriter
    from tokenweir.settings import JournalSettings
    from tokenweir.usage import Certainty, Usage

    clock, mint = SystemClock(), IdMint()
    journal = JournalWriter(data_dir / "journal", JournalSettings(), writer=mint(clock.now_us()))
    sums = dict.fromkeys(("attempts", "uncached_input", "cache_write_5m", "cache_read", "output"), 0)
    begun = clock.now_us() - 3_600_000_000
    for number in range(attempts):
        fresh, write, read, output = upstream.counts(number)
        at = begun + number * 3_600_000_000 // attempts
        attempt_id = mint(at)
        intent = Intent(
            attempt_id=attempt_id,
            request_id=f"req_{attempt_id}",
            attempt_no=1,
            started_at_us=at,
            organization_id="org_bench",
            team_id=f"team_{number % 10}",
            key_id=key_id,
            model_requested=upstream.MODEL,
            stream=bool(number % 2),
            ceiling=Usage(uncached_input=200_000, output=1024),
            ceiling_nanos=615_360_000,
            card_version="bench",
            session_id=f"session-{number // 50}",
            client="Anthropic/Python 2.0.0",
        )
        settlement = Settlement(
            attempt_id=attempt_id,
            ended_at_us=at + 900_000,
            status=200,
            certainty=Certainty.EXACT,
            usage=Usage(uncached_input=fresh, cache_write_5m=write, cache_read=read, output=output),
            cost_nanos=fresh * 3_000 + write * 3_750 + read * 300 + output * 15_000,
            model=upstream.MODEL,
            upstream_request_id=f"req_bench{number:015d}",
            message_id=f"msg_bench{number:015d}",
            service_tier="standard",
            inference_geo="global",
            stop_reason="end_turn",
            first_byte_us=400_000,
            raw_usage=b'{"input_tokens":%d,"cache_creation_input_tokens":%d,"cache_read_input_tokens":%d,"output_tokens":%d}'
            % (fresh, write, read, output),
        )
        journal.append_intent(intent)
        journal.append_settlement(settlement)
        for name, count in zip(sums, (1, fresh, write, read, output), strict=True):
            sums[name] += count
    size = journal.appended_bytes
    journal.close()
    print(size, file=sys.stderr)
    return sums


if __name__ == "__main__":
    print(json.dumps(write_journal(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
