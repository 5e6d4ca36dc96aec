"""Trees of transcripts as Claude Code writes them, with everything planted that makes counting hard; and one line at a time for small tests."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

MODELS = ("claude-opus-4-5", "claude-sonnet-4-5", "claude-haiku-4-5", "claude-of-the-future-9")


def line(message: str = "msg_1", request: str = "req_1", *, output: int = 10, at: str = "2026-11-20T10:00:00.000Z", **fields: Any) -> str:
    """One line of an assistant. Fields beside those of the line itself go into `usage`; `model` and `stop_reason` into the message."""
    usage = {"input_tokens": 3, "output_tokens": output, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    own = {name: fields.pop(name) for name in ("isSidechain", "agentId", "sessionId", "cwd", "isApiErrorMessage", "uuid") if name in fields}
    message_fields = {"model": fields.pop("model", MODELS[0]), "stop_reason": fields.pop("stop_reason", "end_turn")}
    entry: dict[str, Any] = {
        "type": "assistant",
        "uuid": f"{message}-{output}",
        "timestamp": at,
        "sessionId": "session-1",
        "version": "2.1.300",
        "cwd": "/home/ada/app",
        "message": {"role": "assistant", "content": [{"type": "text", "text": "…"}], "usage": usage | fields, **message_fields},
        **own,
    }
    if message:
        entry["message"]["id"] = message
    if request:
        entry["requestId"] = request
    return json.dumps(entry) + "\n"


def write_tree(folder: Path, *, seed: int, files: int = 8, answers: int = 40) -> None:
    """Growing rows, replays in other files, sub-agents, missing ids, synthetic messages, API errors, other lines, torn lines, an unfinished end."""
    chance = random.Random(seed)
    told: list[str] = []
    for number in range(files):
        project = folder / f"-home-ada-app{number % 3}"
        agent = chance.random() < 0.3
        path = project / f"session-{number}" / "subagents" / f"agent-{number}.jsonl" if agent else project / f"session-{number}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines: list[str] = []
        for index in range(answers):
            message = f"msg_{number}_{index}"
            place = {"sessionId": f"session-{number}", "cwd": f"/home/ada/app{number % 3}", "isSidechain": agent, "model": chance.choice(MODELS)}
            cache = {"cache_read_input_tokens": chance.randrange(50_000), "cache_creation_input_tokens": (written := chance.randrange(9_000))}
            if chance.random() < 0.6:
                hour = chance.randrange(written + 1)
                cache["cache_creation"] = {"ephemeral_5m_input_tokens": written - hour, "ephemeral_1h_input_tokens": hour}
            tokens = sorted(chance.randrange(1, 5_000) for _ in range(chance.randint(1, 4)))
            for step, output in enumerate(tokens):
                request = "" if chance.random() < 0.15 else f"req_{message}"
                stop = "end_turn" if step == len(tokens) - 1 else None
                at = f"2026-11-{1 + number:02d}T{index % 24:02d}:{step:02d}:00.000Z"
                written_line = line(message, request, output=output, at=at, stop_reason=stop, **place, **cache)
                lines.append(written_line)
                told.append(written_line)
            chance.random() < 0.1 and lines.append(line(f"none-{message}", "", model="<synthetic>"))
            chance.random() < 0.1 and lines.append(line(f"error-{message}", "", isApiErrorMessage=True))
            chance.random() < 0.1 and lines.append('{"type": "user", "message": {"content": "\\"usage\\": 5"}}\n')
            chance.random() < 0.05 and lines.append('{"type": "assistant", "message": {"usage": {"input\n')
            chance.random() < 0.1 and lines.append(line("", "", output=chance.randrange(100), uuid=f"lone-{message}"))
            chance.random() < 0.15 and lines.append(chance.choice(told))
        content = "".join(lines)
        path.write_text(content if chance.random() < 0.7 else content.rstrip("\n") if chance.random() < 0.5 else content[:-40])
