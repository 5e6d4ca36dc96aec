"""The control file: how a command finds the gateway process that serves the same data directory, and proves that it may ask it.

A gateway writes `gateway.json` (its address and a secret of this run) into the data directory, for the owner alone, and takes it away when it ends. One
that was killed leaves it behind: then nobody answers at the address, or somebody who does not know the secret. Change with it: `gateway/limits.py`,
`cli/limit_status.py`.
"""

from __future__ import annotations

import http.client
import os
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

CONTROL_FILE: Final = "gateway.json"
_ANSWER_BYTES_MAX: Final = 256 * 1024 * 1024
_TIMEOUT_S: Final = 10.0


class Control(msgspec.Struct, frozen=True):
    """Where the gateway of a data directory answers. `token` is a secret."""

    url: str
    token: str
    pid: int

    def __repr__(self) -> str:
        return f"Control(url={self.url!r}, pid={self.pid})"


def write_control(data_dir: Path, control: Control) -> Path:
    """Say where this process answers; returns the file."""
    file = data_dir / CONTROL_FILE
    draft = data_dir / f".{CONTROL_FILE}.{control.pid}"
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as out:
        out.write(msgspec.json.encode(control))
    draft.replace(file)
    return file


def remove_control(data_dir: Path, control: Control) -> None:
    """Take the file away, if it is still this process's own."""
    if read_control(data_dir) == control:
        (data_dir / CONTROL_FILE).unlink(missing_ok=True)


def read_control(data_dir: Path) -> Control | None:
    """Where the gateway of the data directory said that it answers; None if none has."""
    try:
        return msgspec.json.decode((data_dir / CONTROL_FILE).read_bytes(), type=Control)
    except (OSError, msgspec.DecodeError):
        return None


def ask_gateway(control: Control, path: str) -> bytes | None:
    """What the gateway answers to `GET path`; None if it is not there (any more), or is another one."""
    parts = urlsplit(control.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path, headers={"authorization": f"Bearer {control.token}"})
        answer = connection.getresponse()
        body = answer.read(_ANSWER_BYTES_MAX)
        return body if answer.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
