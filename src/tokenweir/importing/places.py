"""Where transcripts are: the places Claude Code writes them to, or those that were named, down to single files.

The rule it protects: every file is read once, whatever links or overlapping places lead to it, and what cannot be read is said, never passed over in
silence. Nothing is opened here. Change together with docs/REPORT.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from tokenweir.errors import NotFound
from tokenweir.periods import Micros

SUFFIX = ".jsonl"
SUBAGENTS = "subagents"
AGENT_PREFIX = "agent-"


class TranscriptFile(msgspec.Struct, frozen=True):
    """One file of lines, and what its name says for lines that do not say it themselves."""

    path: str
    size: int
    modified_us: Micros
    project: str
    """The folder Claude Code named after the project."""
    session_id: str
    agent_id: str
    """The sub-agent that wrote the file; empty for a main transcript."""


def default_places(environ: Mapping[str, str], home: Path) -> list[Path]:
    """Where Claude Code keeps transcripts, whether or not it has been used: `CLAUDE_CONFIG_DIR` (a comma-separated list) instead of the usual two."""
    named = [Path(part.strip()).expanduser() for part in environ.get("CLAUDE_CONFIG_DIR", "").split(",") if part.strip()]
    config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    folders = named or [home / ".claude", config / "claude"]
    return [folder if folder.name == "projects" else folder / "projects" for folder in folders]


def find_transcripts(places: Iterable[Path], *, on_problem: Callable[[str], None]) -> list[TranscriptFile]:
    """Every transcript in the places, largest first. A place that is a file is taken whatever its name. Raises NotFound if a place does not exist."""
    found: dict[tuple[int, int], TranscriptFile] = {}
    for place in places:
        for path in _files(place, on_problem):
            try:
                status = os.stat(path)
            except OSError as error:
                on_problem(f"{path}: {error.strerror}")
                continue
            found.setdefault((status.st_dev, status.st_ino), _described(path, status))
    return sorted(found.values(), key=lambda file: (-file.size, file.path))


def _files(place: Path, on_problem: Callable[[str], None]) -> Iterator[str]:
    if place.is_file():
        yield str(place)
        return
    if not place.is_dir():
        raise NotFound(f"There is no file or folder {place}.")
    for folder, below, names in os.walk(place, onerror=lambda error: on_problem(f"{error.filename}: {error.strerror}")):
        below.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            # A pipe or a device of that name would be waited on for ever.
            if name.endswith(SUFFIX) and (os.path.isfile(path) or not os.path.exists(path)):
                yield path


def _described(path: str, status: os.stat_result) -> TranscriptFile:
    parts = path.split(os.sep)
    stem = parts[-1].removesuffix(SUFFIX)
    by_agent = stem.startswith(AGENT_PREFIX) or (len(parts) > 2 and parts[-2] == SUBAGENTS)
    in_session = by_agent and len(parts) > 3 and parts[-2] == SUBAGENTS
    return TranscriptFile(
        path=path,
        size=status.st_size,
        modified_us=status.st_mtime_ns // 1_000,
        project=parts[-4] if in_session else parts[-2] if len(parts) > 1 else "",
        session_id=parts[-3] if in_session else "" if by_agent else stem,
        agent_id=stem.removeprefix(AGENT_PREFIX) if by_agent else "",
    )
