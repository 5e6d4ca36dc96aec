"""`make bench`: what Tokenweir costs beside plain proxies, in one run on one machine.

The candidate, with all its processes, has one core to itself; the stand-in for the provider and the load share another. Candidates are measured
one after the other, before the same stand-in, with the same requests. After each the ledger is compared with what the stand-in served: a run that
lost a token is void, and says so by its exit code (1). No figure is ever asserted. Everything stays on this machine and ends by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

import candidates
import processes
import report
import scenarios
from bookkeeping import measure_bookkeeping
from limits import measure_limits
from processes import BenchFailed
from scenarios import FULL, HEAVY, QUICK, Sizes
from verification import compare_ledger

STARTS: dict[str, candidates.Start] = {
    "direct": candidates.direct,
    "tokenweir": candidates.tokenweir,
    "envoy": candidates.envoy,
    "nginx": candidates.nginx,
    "litellm": candidates.litellm,
}
FOREIGN_CORES_MAX = 0.05
"""More than this taken by other processes, and the run says that its figures cannot be trusted."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog="Figures and their meaning: docs/BENCHMARKS.md"
    )
    parser.add_argument("--quick", action="store_true", help="under a minute, small numbers: to see that everything works; not recorded")
    parser.add_argument("--with-litellm", action="store_true", help="measure LiteLLM's proxy too; installed into bench/.litellm if it is not there")
    parser.add_argument("--only", action="append", choices=sorted(STARTS), help="these candidates alone (may be repeated)")
    parser.add_argument(
        "--scenario", action="append", choices=["json", "big", "fast", "paced", "rate", "memory", "bookkeeping", "limits"], help="these alone"
    )
    parser.add_argument("--rate", type=float, default=300.0, help="requests per second in the open loop (%(default)g)")
    parser.add_argument("--candidate-core", type=int, default=0, help="core of the candidate (%(default)s)")
    parser.add_argument("--load-core", type=int, default=1, help="core of the stand-in and the load (%(default)s)")
    parser.add_argument("--record", action=argparse.BooleanOptionalAction, default=None, help="write the result file and the line in the document")
    parser.add_argument("--work-dir", type=Path, default=None, help="where candidates keep their files and logs; kept afterwards")
    return parser.parse_args()


class Run:
    """One run: what is asked for, and what has been found."""

    def __init__(self, options: argparse.Namespace, work: Path, console: Console) -> None:
        self.options = options
        self.work = work
        self.console = console
        self.sizes: Sizes = QUICK if options.quick else FULL
        self.result: dict[str, Any] = {
            "date": report.now(),
            "commit": report.commit(),
            "machine": report.machine(),
            "quick": options.quick,
            "candidates": {},
            "ledger": {},
            "notes": [],
            "void": False,
        }

    def wanted(self, scenario: str) -> bool:
        """Whether the scenario was asked for."""
        return not self.options.scenario or scenario in self.options.scenario

    def note(self, text: str) -> None:
        """Say something about the run that its reader must know."""
        self.result["notes"].append(text)

    def chosen(self) -> list[str]:
        """The candidates, without those that cannot run here, which are noted."""
        names = self.options.only or ["direct", "tokenweir", "envoy", "nginx", "litellm"]
        if "envoy" in names and candidates.envoy_binary() is None:
            names = [name for name in names if name != "envoy"]
            self.note("Envoy is not installed (`make bench` does it): no ratio to it")
        if "nginx" in names and not candidates.nginx_installed():
            names = [name for name in names if name != "nginx"]
        if "litellm" in names and not (self.options.with_litellm or self.options.only):
            names = [name for name in names if name != "litellm"]
            self.note("LiteLLM was not measured; --with-litellm does it")
        elif "litellm" in names and not candidates.litellm_installed():
            try:
                candidates.install_litellm(self.work)
            except (BenchFailed, subprocess.TimeoutExpired, OSError) as error:
                names = [name for name in names if name != "litellm"]
                self.note(f"LiteLLM was not measured: {error}")
        return names

    def measure(self, name: str) -> None:
        """All scenarios of one candidate: CPU and latency on one process, memory on a fresh one."""
        figures: dict[str, Any] = {}
        self.result["candidates"][name] = figures
        try:
            self._measure_cpu(name, figures)
            if self.wanted("memory") and name not in ("direct", "litellm"):
                self._measure_memory(name, figures)
        except BenchFailed as error:
            self.note(f"{name}: {error}")
            self.result["void"] |= name == "tokenweir"
        for scenario, found in figures.items():
            if found.get("errors"):
                self.note(f"{name}, {scenario}: {found['errors']}")
                self.result["void"] |= name == "tokenweir"
        spoiled = {scenario: found["foreign_cores"] for scenario, found in figures.items() if found.get("foreign_cores", 0) > FOREIGN_CORES_MAX}
        if spoiled:
            taken = ", ".join(f"{scenario} {cores:.0%}" for scenario, cores in spoiled.items())
            self.note(f"{name}: other processes took a part of a core meanwhile ({taken}); repeat on a quiet machine")

    def _measure_cpu(self, name: str, figures: dict[str, Any]) -> None:
        sizes = HEAVY if name == "litellm" and not self.options.quick else self.sizes
        rate, streams = (10.0, 4) if name == "litellm" else (self.options.rate, 30)
        plan = [scenario for scenario in scenarios.scenarios(sizes, rate=rate, streams=streams) if self.wanted(scenario.name)]
        if name == "direct" and self.options.quick:
            plan = [scenario for scenario in plan if scenario.name in ("json", "paced", "rate")]
        if not plan:
            return
        with self._started(name) as (running, provider):
            scenarios.warm_up(running, load_core=self.options.load_core, seconds=0.5 if self.options.quick else 1.5)
            for scenario in plan:
                with self.console.status(f"{name}: {scenario.title}"):
                    figures[scenario.name] = scenarios.measure(running, provider, scenario, load_core=self.options.load_core)
            self._compare(f"{name}, load", running, provider[0])

    def _measure_memory(self, name: str, figures: dict[str, Any]) -> None:
        with self._started(name) as (running, provider):
            with self.console.status(f"{name}: {self.sizes.slow_streams} slow streams"):
                figures["memory"] = scenarios.measure_memory(running, provider, self.sizes, load_core=self.options.load_core)
            self._compare(f"{name}, slow streams", running, provider[0])

    @contextlib.contextmanager
    def _started(self, name: str) -> Any:
        """A fresh stand-in, and a fresh candidate before it."""
        with (
            candidates.provider(self.work, self.options.load_core) as provider,
            STARTS[name](provider[0], self.work, self.options.candidate_core) as running,
        ):
            yield running, provider

    def _compare(self, title: str, running: candidates.Running, provider_url: str) -> None:
        if running.data_dir is None:
            return
        with self.console.status(f"{title}: comparing the ledger"):
            check = compare_ledger(running.data_dir, provider_url)
        self.result["ledger"][title] = check
        self.result["void"] |= bool(check["differences"])

    def book(self) -> None:
        """The worker alone."""
        try:
            with self.console.status(f"bookkeeping: {self.sizes.journal_attempts:,} attempts"):
                found = measure_bookkeeping(self.work, attempts=self.sizes.journal_attempts, core=self.options.candidate_core)
        except (BenchFailed, subprocess.TimeoutExpired) as error:
            self.note(f"bookkeeping: {error}")
            self.result["void"] = True
            return
        self.result["bookkeeping"] = found
        if found["differences"]:
            self.result["void"] = True
            self.note(f"bookkeeping lost or doubled something: {found['differences']}")

    def limit(self) -> None:
        """The limiter alone."""
        options, sizes = self.options, self.sizes
        try:
            with self.console.status(f"limits: {sizes.limit_requests:,} requests, up to {max(sizes.limit_keys):,} keys"):
                found = measure_limits(
                    self.work, requests=sizes.limit_requests, keys=sizes.limit_keys, core=options.candidate_core, store_core=options.load_core
                )
        except (BenchFailed, subprocess.TimeoutExpired) as error:
            self.note(f"limits: {error}")
            self.result["void"] = True
            return
        self.result["limits"] = found
        if "shared" not in found and not found["differences"]:
            self.note("Neither Valkey nor Redis is installed: what a store of limits adds was not measured")
        if found["differences"]:
            self.result["void"] = True
            self.note(f"limits do not stand at what was settled: {found['differences']}")


def main() -> int:
    """Measure, show, record; 1 if the run is void."""
    options = arguments()
    console = Console()
    cores = os.cpu_count() or 1
    if cores < 2 or options.candidate_core == options.load_core:
        console.print("A candidate needs a core of its own: this takes two cores.")
        return 2
    processes.allow_many_files()
    os.sched_setaffinity(0, {options.load_core})
    work = options.work_dir or Path(tempfile.mkdtemp(prefix="tokenweir-bench-"))
    work.mkdir(parents=True, exist_ok=True)
    run = Run(options, work, console)
    try:
        for name in run.chosen():
            run.measure(name)
        if run.wanted("bookkeeping") and (not options.only or "tokenweir" in options.only):
            run.book()
        if run.wanted("limits") and (not options.only or "tokenweir" in options.only):
            run.limit()
    finally:
        if options.work_dir is None:
            shutil.rmtree(work, ignore_errors=True)
    run.result["summary"] = report.summary(run.result)
    report.show(run.result, console)
    if options.record if options.record is not None else not (options.quick or options.only or options.scenario):
        path, listed = report.record(run.result)
        console.print(f"Kept in {path.relative_to(report.REPOSITORY)}" + (", and listed in docs/BENCHMARKS.md" if listed else ""))
    if run.result["void"]:
        console.print("This run is void: see the notes and the comparison of the ledger.", style="bold red")
    return 1 if run.result["void"] else 0


if __name__ == "__main__":
    sys.exit(main())
