"""`tokenweir report` against ccusage, on the same generated tree of transcripts, alternating: wall time and memory of both.

    python bench/transcripts.py --megabytes 1000 --files 2000 --ccusage PATH_OF_ITS_PROGRAM
    python bench/transcripts.py --generate DIRECTORY --megabytes 50

Without `--ccusage` only ours is measured. To have it: `npm install ccusage@20` in a directory of its own. The tree has what real ones have: answers over
several lines with growing counts, sub-agents, resumed sessions, tool results, snapshots of files, synthetic messages. It is the same for the same numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

MODELS = ["claude-opus-4-5-20251101", "claude-sonnet-4-5-20250929", "claude-haiku-4-5-20251001"]
START_S = 1_793_491_200  # 2026-11-01
WORDS = ["the", "weir", "measures", "a", "river", "and", "regulates", "it", "so", "that", "what", "flows", "is", "known", "decided", "upon"]


class Writer:
    """Lines of one session and its sub-agents."""

    def __init__(self, random_: random.Random, filler: list[str]) -> None:
        self.random = random_
        self.filler = filler
        self.serial = 0

    def text(self, mean_bytes: int) -> str:
        wanted = min(int(self.random.expovariate(1 / mean_bytes)) + 20, 400_000)
        start = self.random.randrange(len(self.filler))
        parts, size = [], 0
        while size < wanted:
            part = self.filler[start % len(self.filler)]
            parts.append(part)
            size += len(part)
            start += 1
        return "".join(parts)[:wanted]

    def hex(self, digits: int) -> str:
        return f"{self.random.getrandbits(4 * digits):0{digits}x}"

    def uuid(self) -> str:
        digits = self.hex(32)
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"

    def session(self, bytes_wanted: int, *, session: str, cwd: str, at_s: float, agent: str = "") -> Iterator[str]:
        version = self.random.choice(["1.0.88", "2.0.31", "2.1.330"])
        size = 0
        common = {"userType": "external", "cwd": cwd, "sessionId": session, "version": version, "gitBranch": "main"}
        if agent:
            common["agentId"] = agent
        parent = None
        while size < bytes_wanted:
            at_s += self.random.expovariate(1 / 20)
            for entry in self.turn(bool(agent), version):
                uuid = self.uuid()
                line = json.dumps(
                    {"parentUuid": parent, "isSidechain": bool(agent), **common, **entry, "uuid": uuid, "timestamp": stamp(at_s)},
                    separators=(",", ":"),
                )
                parent = uuid
                size += len(line) + 1
                at_s += 0.7
                yield line

    def turn(self, sidechain: bool, version: str) -> Iterator[dict]:
        kind = self.random.random()
        result = self.text(3_500)
        yield {
            "type": "user",
            "message": {"role": "user", "content": [{"tool_use_id": "toolu_" + self.hex(24), "type": "tool_result", "content": result}]},
            "toolUseResult": {"stdout": result[: len(result) // 2], "stderr": "", "interrupted": False},
        }
        if kind < 0.05:
            yield {"type": "file-history-snapshot", "snapshot": {"trackedFileBackups": {"a.py": self.text(20_000)}}, "isSnapshotUpdate": False}
        if kind < 0.02:
            zero = {"input_tokens": 0, "output_tokens": 0, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
            message = {"id": self.uuid(), "model": "<synthetic>", "role": "assistant", "type": "message", "usage": zero, "content": []}
            yield {"type": "assistant", "isApiErrorMessage": True, "message": message}
        yield from self.answer(sidechain, version)

    def answer(self, sidechain: bool, version: str) -> Iterator[dict]:
        rand = self.random
        blocks: list[dict] = [{"type": "thinking", "thinking": self.text(900), "signature": self.hex(600)}] if rand.random() < 0.4 else []
        blocks += [{"type": "text", "text": self.text(500)}] if rand.random() < 0.7 else []
        blocks += [{"type": "tool_use", "id": "toolu_" + self.hex(24), "name": "Bash", "input": {"command": self.text(700)}}]
        writes, output = rand.randrange(200, 9_000), rand.randrange(60, 3_000)
        hour = writes if rand.random() < 0.2 else 0
        message_id, request_id, model = "msg_01" + self.hex(22), "req_01" + self.hex(22), rand.choice(MODELS)
        for index, block in enumerate(blocks):
            final = index == len(blocks) - 1
            usage = {
                "input_tokens": 4,
                "cache_creation_input_tokens": writes,
                "cache_read_input_tokens": rand.randrange(10_000, 160_000) if index == 0 else usage["cache_read_input_tokens"],  # noqa: F821 - bound by the first turn
                "cache_creation": {"ephemeral_5m_input_tokens": writes - hour, "ephemeral_1h_input_tokens": hour},
                "output_tokens": output if final else rand.randrange(1, 9),
                "service_tier": "standard",
            }
            yield {
                "message": {
                    "model": model,
                    "id": message_id,
                    "type": "message",
                    "role": "assistant",
                    "content": [block],
                    "stop_reason": "tool_use" if final and version > "2" else None,
                    "stop_sequence": None,
                    "usage": usage,
                },
                "requestId": request_id,
                "type": "assistant",
            }


def stamp(at_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_s)) + f".{int(at_s * 1000) % 1000:03d}Z"


def generate(root: Path, *, megabytes: int, files: int, seed: int = 7) -> int:
    """Write `<root>/projects/…`; how many bytes it has."""
    rand = random.Random(seed)
    filler = [" ".join(rand.choices(WORDS, k=12)) + rand.choice(['\n"', "\t", " \\ ", "é ", "{ } "]) for _ in range(2_000)]
    sizes = [rand.lognormvariate(0, 1.3) for _ in range(files)]
    scale = megabytes * 1_000_000 / sum(sizes)
    written = 0
    previous: list[str] = []
    for number, size in enumerate(sizes):
        writer = Writer(rand, filler)
        cwd = f"/home/ada/src/project-{number % 23}"
        folder = root / "projects" / cwd.replace("/", "-")
        session = writer.uuid()
        agent = writer.hex(8) if number % 4 == 3 else ""
        path = folder / session / "subagents" / f"agent-{agent}.jsonl" if agent else folder / f"{session}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = list(writer.session(int(size * scale), session=session, cwd=cwd, at_s=START_S + rand.random() * 20 * 86_400, agent=agent))
        if number % 40 == 39:
            # A resumed session begins with the history of another.
            lines[:0] = [line.replace('"sessionId":"', '"sessionId":"' + "f", 1) for line in previous[:40]]
        previous = lines
        content = ("\n".join(lines) + "\n").encode()
        path.write_bytes(content)
        written += len(content)
    return written


def run(command: list[str], home: Path) -> tuple[float, float, float]:
    """Wall seconds, seconds of CPU, and megabytes of memory of the process and its children at their largest moment."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(home), "CLAUDE_CONFIG_DIR": str(home), "TZ": "UTC", "NO_COLOR": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environ)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, memory_mb(process.pid))
        time.sleep(0.02)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise SystemExit(f"{command} failed: {process.returncode}")
    return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, peak


def memory_mb(pid: int) -> float:
    """Proportional memory of a process and all below it: what they share is counted once."""
    total = 0.0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) / 1024
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            total += memory_mb(int(child))
    except OSError:
        pass
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1_000)
    parser.add_argument("--files", type=int, default=2_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--ccusage", help="its program, such as DIRECTORY/node_modules/.bin/ccusage")
    parser.add_argument("--generate", type=Path, help="only write the tree, here")
    parser.add_argument("--tree", type=Path, help="a tree generated before")
    options = parser.parse_args()
    if options.generate:
        print(f"{generate(options.generate, megabytes=options.megabytes, files=options.files):,} bytes in {options.generate}")
        return
    tree = options.tree or Path(tempfile.mkdtemp(prefix="transcripts-"))
    try:
        if not options.tree:
            generate(tree, megabytes=options.megabytes, files=options.files)
        programs = {"tokenweir": [str(Path(sys.executable).with_name("tokenweir")), "report", "--by", "day", "--json"]}
        if options.ccusage:
            programs["ccusage"] = [options.ccusage, "daily", "--json", "--offline"]
        times: dict[str, list[float]] = {name: [] for name in programs}
        cpu: dict[str, list[float]] = {name: [] for name in programs}
        peaks = dict.fromkeys(programs, 0.0)
        for command in programs.values():
            run(command, tree)  # the first run of each fills the file cache and the programs' own
        for _ in range(options.runs):
            for name, command in programs.items():
                wall, used, peak = run(command, tree)
                times[name].append(wall)
                cpu[name].append(used)
                peaks[name] = max(peaks[name], peak)
        load = os.getloadavg()[0]
        for name, walls in times.items():
            print(
                f"{name:10} best {min(walls):6.2f} s  median {statistics.median(walls):6.2f} s  CPU {statistics.median(cpu[name]):6.2f} s  memory {peaks[name]:5.0f} MB"
            )
        if options.ccusage:
            for what, taken in (("wall times", times), ("CPU times", cpu)):
                ratio = statistics.median(a / b for a, b in zip(taken["tokenweir"], taken["ccusage"], strict=True))
                print(f"ratio of {what}, median of pairs: {ratio:.2f}")
        print(f"load of the machine at the end: {load:.1f}")
    finally:
        if not options.tree:
            shutil.rmtree(tree)


if __name__ == "__main__":
    main()
