"""OTLP over HTTP: the shapes of an export in JSON and in Protocol Buffers, and the answers to it.

The rule it protects: both forms of one export become the same values, and what is not named here is stepped over in both. Nothing here knows what the
values mean: that is `telemetry.py`. Change with it: `protobuf.py`.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from tokenweir.wire.protobuf import Field, Messages, field, read_message

T = TypeVar("T")


class Value(msgspec.Struct):
    """A scalar; lists and maps are stepped over."""

    stringValue: str | None = None  # noqa: N815 - OTLP's name
    intValue: int | str | None = None  # noqa: N815
    doubleValue: float | str | None = None  # noqa: N815
    boolValue: bool | None = None  # noqa: N815


class Attribute(msgspec.Struct):
    """A named value."""

    key: str = ""
    value: Value | None = None


class Resource(msgspec.Struct):
    """Who sends."""

    attributes: list[Attribute] = []


class LogRecord(msgspec.Struct):
    """One event."""

    timeUnixNano: int | str = 0  # noqa: N815
    observedTimeUnixNano: int | str = 0  # noqa: N815
    body: Value | None = None
    eventName: str = ""  # noqa: N815
    attributes: list[Attribute] = []


class ScopeLogs(msgspec.Struct):
    """Events of one library."""

    logRecords: list[LogRecord] = []  # noqa: N815


class ResourceLogs(msgspec.Struct):
    """Events of one sender."""

    resource: Resource = msgspec.field(default_factory=Resource)
    scopeLogs: list[ScopeLogs] = []  # noqa: N815


class Logs(msgspec.Struct):
    """An export of logs."""

    resourceLogs: list[ResourceLogs] = []  # noqa: N815


class Point(msgspec.Struct):
    """One number of a sum."""

    attributes: list[Attribute] = []
    startTimeUnixNano: int | str = 0  # noqa: N815
    timeUnixNano: int | str = 0  # noqa: N815
    asDouble: float | str | None = None  # noqa: N815
    asInt: int | str | None = None  # noqa: N815


class Sum(msgspec.Struct):
    """The points of a sum."""

    aggregationTemporality: int | str = 0  # noqa: N815
    dataPoints: list[Point] = []  # noqa: N815


class Metric(msgspec.Struct):
    """A metric; only sums are read."""

    name: str = ""
    sum: Sum | None = None


class ScopeMetrics(msgspec.Struct):
    """Metrics of one library."""

    metrics: list[Metric] = []


class ResourceMetrics(msgspec.Struct):
    """Metrics of one sender."""

    resource: Resource = msgspec.field(default_factory=Resource)
    scopeMetrics: list[ScopeMetrics] = []  # noqa: N815


class Metrics(msgspec.Struct):
    """An export of metrics."""

    resourceMetrics: list[ResourceMetrics] = []  # noqa: N815


_ATTRIBUTES = Field("attributes", "message", "KeyValue", repeated=True)
_MESSAGES: Final[Messages] = {
    "Logs": {1: Field("resourceLogs", "message", "ResourceLogs", repeated=True)},
    "ResourceLogs": {1: Field("resource", "message", "Resource"), 2: Field("scopeLogs", "message", "ScopeLogs", repeated=True)},
    "ScopeLogs": {2: Field("logRecords", "message", "LogRecord", repeated=True)},
    "LogRecord": {
        1: Field("timeUnixNano", "fixed64"),
        5: Field("body", "message", "AnyValue"),
        6: _ATTRIBUTES,
        11: Field("observedTimeUnixNano", "fixed64"),
        12: Field("eventName", "text"),
    },
    "Metrics": {1: Field("resourceMetrics", "message", "ResourceMetrics", repeated=True)},
    "ResourceMetrics": {1: Field("resource", "message", "Resource"), 2: Field("scopeMetrics", "message", "ScopeMetrics", repeated=True)},
    "ScopeMetrics": {2: Field("metrics", "message", "Metric", repeated=True)},
    "Metric": {1: Field("name", "text"), 7: Field("sum", "message", "Sum")},
    "Sum": {1: Field("dataPoints", "message", "NumberDataPoint", repeated=True), 2: Field("aggregationTemporality", "uint64")},
    "NumberDataPoint": {
        2: Field("startTimeUnixNano", "fixed64"),
        3: Field("timeUnixNano", "fixed64"),
        4: Field("asDouble", "double"),
        6: Field("asInt", "sfixed64"),
        7: _ATTRIBUTES,
    },
    "Resource": {1: _ATTRIBUTES},
    "KeyValue": {1: Field("key", "text"), 2: Field("value", "message", "AnyValue")},
    "AnyValue": {
        1: Field("stringValue", "text"),
        2: Field("boolValue", "bool"),
        3: Field("intValue", "int64"),
        4: Field("doubleValue", "double"),
    },
}


def response(signal: str, *, refused: int, problem: str, protobuf: bool) -> bytes:
    """The body of a success, in the form of the request; it says how many records were refused and why. `signal` is `logs` or `metrics`."""
    if not refused:
        return b"" if protobuf else b"{}"
    if protobuf:
        return field(1, field(1, refused) + field(2, problem.encode()))
    name = "rejectedLogRecords" if signal == "logs" else "rejectedDataPoints"
    return msgspec.json.encode({"partialSuccess": {name: str(refused), "errorMessage": problem}})


def failure(code: int, message: str, *, protobuf: bool) -> bytes:
    """The body of a failure: a `google.rpc.Status`, as OTLP asks for."""
    if protobuf:
        return field(1, code) + field(2, message.encode())
    return msgspec.json.encode({"code": code, "message": message})


def decode(body: bytes, shape: type[T], *, protobuf: bool) -> T:
    """`Logs` or `Metrics` of a body; raises ValueError with a sentence if it is not one."""
    try:
        if protobuf:
            return msgspec.convert(read_message(body, shape.__name__, _MESSAGES), shape)
        return msgspec.json.decode(body, type=shape)
    except RecursionError:
        raise ValueError("the body is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("the body is not UTF-8") from None
    except msgspec.MsgspecError as error:
        raise ValueError(f"the body is not OTLP {'' if protobuf else 'JSON '}of this kind: {one_line(str(error))}") from None


def one_line(text: str) -> str:
    """The text without characters that could start a line or colour a terminal."""
    return text if text.isprintable() else "".join(character if character.isprintable() else "�" for character in text)
