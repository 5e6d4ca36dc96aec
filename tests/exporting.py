"""Exports of telemetry for tests: events and metrics as Claude Code sends them, also in Protocol Buffers, written by an encoder of our own for tests."""

from __future__ import annotations

import os
import struct
from typing import Any

from tokenweir.wire import otlp
from tokenweir.wire.protobuf import field, varint

AT_NANOS = 1_795_348_536_604_000_000
SESSION = "c7a3a96e-5f41-4902-8988-f4b7e950fdf3"
OTEL_PYTHON = os.environ.get("TOKENWEIR_OTEL_PYTHON", "")
"""A Python that has `opentelemetry-exporter-otlp-proto-http`, for the tests that ask the real exporter."""

API_REQUEST: dict[str, Any] = {
    "session.id": SESSION,
    "user.email": "ada@example.org",
    "event.name": "api_request",
    "event.sequence": 5,
    "model": "claude-sonnet-5-5",
    "input_tokens": 11,
    "output_tokens": 7,
    "cache_read_tokens": 0,
    "cache_creation_tokens": 2000,
    "cache_creation_5m_tokens": 2000,
    "cache_creation_1h_tokens": 0,
    "cost_usd": 0.005092,
    "cost_usd_micros": 5092,
    "duration_ms": 24,
    "request_id": "req_01Research",
    "speed": "normal",
    "query_source": "sdk",
}


def value(plain: Any) -> dict[str, Any]:
    if isinstance(plain, bool):
        return {"boolValue": plain}
    if isinstance(plain, int):
        return {"intValue": plain}
    return {"doubleValue": plain} if isinstance(plain, float) else {"stringValue": plain}


def attributes(plain: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": value(held)} for key, held in plain.items()]


def event(*, without: tuple[str, ...] = (), at_nanos: int = AT_NANOS, body: str = "claude_code.api_request", **changes: Any) -> dict[str, Any]:
    told = {key: held for key, held in (API_REQUEST | changes).items() if key not in without}
    return {"timeUnixNano": str(at_nanos), "body": {"stringValue": body}, "attributes": attributes(told)}


def logs(*records: dict[str, Any], **resource: Any) -> dict[str, Any]:
    about = {"service.name": "claude-code", "service.version": "2.1.330", **(resource or {"team": "blue"})}
    return {"resourceLogs": [{"resource": {"attributes": attributes(about)}, "scopeLogs": [{"logRecords": list(records)}]}]}


def point(amount: float, *, at_nanos: int = AT_NANOS, start_nanos: int = AT_NANOS - 10**9, **told: Any) -> dict[str, Any]:
    number = {"asInt": str(amount)} if isinstance(amount, int) else {"asDouble": amount}
    held = {"session.id": SESSION, "model": "claude-sonnet-5-5", **told}
    return {"attributes": attributes(held), "startTimeUnixNano": str(start_nanos), "timeUnixNano": str(at_nanos), **number}


def metrics(name: str, *points: dict[str, Any], temporality: int = 1) -> dict[str, Any]:
    found = {"name": name, "sum": {"aggregationTemporality": temporality, "isMonotonic": True, "dataPoints": list(points)}}
    return {"resourceMetrics": [{"resource": {"attributes": []}, "scopeMetrics": [{"metrics": [found]}]}]}


def as_protobuf(export: dict[str, Any], message: str) -> bytes:
    """The export as Protocol Buffers. Names the tables do not have are left out."""
    out = bytearray()
    for number, known in otlp._MESSAGES[message].items():
        held = export.get(known.name)
        for one in held if known.repeated and held is not None else [] if held is None else [held]:
            if known.kind == "message":
                out += field(number, as_protobuf(one, known.message))
            elif known.kind == "text":
                out += field(number, one.encode())
            elif known.kind == "double":
                out += varint(number << 3 | 1) + struct.pack("<d", one)
            elif known.kind in ("fixed64", "sfixed64"):
                out += varint(number << 3 | 1) + struct.pack("<q", int(one))
            else:
                out += field(number, int(one))
    return bytes(out)
