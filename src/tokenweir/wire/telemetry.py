"""OpenTelemetry (OTLP) as Claude Code sends it: the `claude_code.api_request` events of its logs, and the sums of its metrics.

The rules it protects: JSON and Protocol Buffers of the same export read the same; texts that people wrote or read (prompts, answers) are never taken out
of a body; a count that is missing or cannot be one is a refusal, not a zero. Change with it: `receiver/booking.py` (what becomes of an event) and
docs/TELEMETRY-RECEIVER.md.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import msgspec

from tokenweir.money import Nanos
from tokenweir.periods import Micros, parse_instant
from tokenweir.usage import Usage
from tokenweir.wire.otlp import Attribute, LogRecord, Logs, Metric, Metrics, Point, decode, one_line

API_REQUEST: Final = "claude_code.api_request"
TOKEN_METRIC: Final = "claude_code.token.usage"  # noqa: S105 - tokens of a language model
COST_METRIC: Final = "claude_code.cost.usage"
_METRICS: Final = (TOKEN_METRIC, COST_METRIC)
_TOKEN_TYPES: Final = ("input", "output", "cacheRead", "cacheCreation")
_CUMULATIVE: Final = 2
COUNT_MAX: Final = 10**10
"""No call has more tokens than this; a greater number is a mistake."""
_COST_NANOS_MAX: Final = 10**15
_TEXT_CHARS_MAX: Final = 200
TAGS_MAX: Final = 16
_AT_MAX: Final = 4_102_444_800_000_000
"""2100: a later time is a mistake."""

FLAG_SPLIT_ASSUMED: Final = "cache_split_assumed"
"""Cache writes came as one number; they are taken to be 5-minute writes."""

_NOT_TAGS: Final = re.compile(
    r"(?:host|os|process|service|telemetry|container|k8s|device|terminal|app|wsl)\.|(?:user|session|organization|account|event|prompt)\b"
)
"""Attributes of a resource that say something of the machine or the program, not of the work; those of people and sessions have fields of their own."""


class ApiRequest(msgspec.Struct, frozen=True):
    """One call to the Claude API, as Claude Code tells of it."""

    started_at_us: Micros
    ended_at_us: Micros
    model: str
    usage: Usage
    request_id: str
    event_id: str
    """A digest of the event, for calls without a request id: the same event sent twice has the same."""
    cost_nanos: Nanos | None
    """What Claude Code thinks it cost; None if it does not say."""
    session_id: str = ""
    agent_id: str = ""
    person: str = ""
    """Email address, or account, or the anonymous id of the installation."""
    client: str = ""
    speed: str = ""
    tags: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


class MetricPoint(msgspec.Struct, frozen=True):
    """One point of a sum."""

    series: str
    metric: str
    token_type: str
    model: str
    session_id: str
    started_at_us: Micros
    at_us: Micros
    amount: int
    """Tokens, or nano-USD."""
    cumulative: bool


class Reading(msgspec.Struct, frozen=True):
    """What a body holds."""

    requests: tuple[ApiRequest, ...] = ()
    points: tuple[MetricPoint, ...] = ()
    skipped: int = 0
    """Records and points that are of no interest here."""
    refused: int = 0
    """Records and points that should be of interest and could not be believed."""
    problem: str = ""
    """Why the first of them could not."""


def read_logs(body: bytes, *, protobuf: bool) -> Reading:
    """The calls that an export of logs tells of; raises ValueError with a sentence if it is no such export."""
    logs = decode(body, Logs, protobuf=protobuf)
    requests: list[ApiRequest] = []
    skipped = refused = 0
    problem = ""
    for resource_logs in logs.resourceLogs:
        resource: dict[str, Any] | None = None
        for record in (record for scope in resource_logs.scopeLogs for record in scope.logRecords):
            if not _is_api_request(record):
                skipped += 1
                continue
            resource = _plain(resource_logs.resource.attributes) if resource is None else resource
            try:
                requests.append(_api_request(record, resource))
            except ValueError as error:
                refused += 1
                problem = problem or str(error)
    return Reading(requests=tuple(requests), skipped=skipped, refused=refused, problem=problem)


def read_metrics(body: bytes, *, protobuf: bool) -> Reading:
    """The points that an export of metrics holds; raises ValueError with a sentence if it is no such export."""
    metrics = decode(body, Metrics, protobuf=protobuf)
    points: list[MetricPoint] = []
    skipped = refused = 0
    problem = ""
    for metric in _all_metrics(metrics):
        told = metric.sum.dataPoints if metric.sum is not None else []
        if metric.sum is None or metric.name not in _METRICS:
            skipped += max(1, len(told))
            continue
        cumulative = metric.sum.aggregationTemporality in (_CUMULATIVE, "AGGREGATION_TEMPORALITY_CUMULATIVE")
        for point in told:
            try:
                points.append(_metric_point(metric.name, point, cumulative=cumulative))
            except ValueError as error:
                refused += 1
                problem = problem or str(error)
    return Reading(points=tuple(points), skipped=skipped, refused=refused, problem=problem)


def _all_metrics(metrics: Metrics) -> Iterator[Metric]:
    for resource in metrics.resourceMetrics:
        for scope in resource.scopeMetrics:
            yield from scope.metrics


def _is_api_request(record: LogRecord) -> bool:
    if record.eventName or (record.body is not None and record.body.stringValue):
        body = record.body.stringValue if record.body is not None else None
        return API_REQUEST in (record.eventName, body)
    return any(
        one.key == "event.name" and one.value is not None and one.value.stringValue in ("api_request", API_REQUEST) for one in record.attributes
    )


def _api_request(record: LogRecord, resource: Mapping[str, Any]) -> ApiRequest:
    told = _plain(record.attributes)
    model = _text(told, "model")
    if not model:
        raise ValueError("an api_request event names no model")
    ended_at_us = _event_time(record, told)
    usage, flags = _usage(told)
    request_id = str(told.get("request_id", ""))
    person = _text(told, "user.email") or _text(told, "user.account_uuid") or _text(told, "user.account_id") or _text(told, "user.id")
    service = " ".join(filter(None, (_text(resource, "service.name"), _text(resource, "service.version"))))
    return ApiRequest(
        started_at_us=ended_at_us - 1_000 * _count(told, "duration_ms", most=86_400_000),
        ended_at_us=ended_at_us,
        model=model,
        usage=usage,
        request_id="" if request_id in ("null", "undefined") else request_id,
        event_id=_digest(told, ended_at_us),
        cost_nanos=_cost(told),
        session_id=_text(told, "session.id"),
        agent_id=_text(told, "agent.id") or _text(told, "agent_id"),
        person=person,
        client=service,
        speed="" if _text(told, "speed") in ("normal", "standard") else _text(told, "speed"),
        tags=_tags(told, resource, person),
        flags=flags,
    )


def _usage(told: Mapping[str, Any]) -> tuple[Usage, tuple[str, ...]]:
    """The disjoint token classes. Input and output must be there: without them nothing is known of the call."""
    for name in ("input_tokens", "output_tokens"):
        if name not in told:
            raise ValueError(f"an api_request event has no {name}")
    written = _count(told, "cache_creation_tokens")
    short, long = _count(told, "cache_creation_5m_tokens"), _count(told, "cache_creation_1h_tokens")
    flags: tuple[str, ...] = ()
    if short + long < written:
        short, flags = written - long, (FLAG_SPLIT_ASSUMED,)
    return (
        Usage(
            uncached_input=_count(told, "input_tokens"),
            cache_write_5m=short,
            cache_write_1h=long,
            cache_read=_count(told, "cache_read_tokens"),
            output=_count(told, "output_tokens"),
        ),
        flags,
    )


def _cost(told: Mapping[str, Any]) -> Nanos | None:
    if "cost_usd_micros" in told:
        return 1_000 * _count(told, "cost_usd_micros", most=_COST_NANOS_MAX // 1_000)
    return _usd_nanos(told["cost_usd"]) if "cost_usd" in told else None


def _usd_nanos(value: object) -> Nanos:
    """Dollars as the exporter's floating-point number was written, to the nearest nano-dollar."""
    try:
        amount = Decimal(str(value)).scaleb(9)
        if not amount.is_finite() or not 0 <= amount <= _COST_NANOS_MAX:
            raise InvalidOperation
        return int(amount.to_integral_value())
    except InvalidOperation:
        raise ValueError(f"a cost of {one_line(str(value))[:40]} cannot be one") from None


def _metric_point(metric: str, point: Point, *, cumulative: bool) -> MetricPoint:
    told = _plain(point.attributes)
    value = point.asInt if point.asInt is not None else point.asDouble
    token_type = _text(told, "type") if metric == TOKEN_METRIC else ""
    if metric == TOKEN_METRIC and token_type not in _TOKEN_TYPES:
        raise ValueError("a point of claude_code.token.usage has no type that is known here")
    at_us = _nanos_time(point.timeUnixNano)
    return MetricPoint(
        series="\n".join(sorted(f"{one_line(key)}={one_line(str(held))}" for key, held in told.items())),
        metric=metric,
        token_type=token_type,
        model=_text(told, "model"),
        session_id=_text(told, "session.id"),
        started_at_us=_nanos_time(point.startTimeUnixNano) if cumulative else at_us,
        at_us=at_us,
        amount=_usd_nanos(value) if metric == COST_METRIC else _whole(metric, value, COUNT_MAX),
        cumulative=cumulative,
    )


def _event_time(record: LogRecord, told: Mapping[str, Any]) -> Micros:
    stated = record.timeUnixNano or record.observedTimeUnixNano
    if stated not in (0, "0", ""):
        return _nanos_time(stated)
    try:
        return _plausible(parse_instant(str(told.get("event.timestamp", ""))))
    except (ValueError, OverflowError):
        raise ValueError("an api_request event does not say when it happened") from None


def _nanos_time(stated: int | str) -> Micros:
    return _plausible(_whole("time", stated, 2**63) // 1_000)


def _plausible(at_us: Micros) -> Micros:
    if not 0 < at_us < _AT_MAX:
        raise ValueError("a time is missing or cannot be one")
    return at_us


def _count(told: Mapping[str, Any], name: str, *, most: int = COUNT_MAX) -> int:
    return _whole(name, told.get(name, 0), most)


def _whole(name: str, value: object, most: int) -> int:
    """A whole number from 0 to `most`, also as text (OTLP's JSON writes 64-bit numbers so) or as a float without a fraction."""
    number: int | None = None
    if isinstance(value, str):
        number = int(value) if value.isascii() and value.isdigit() and len(value) <= 20 else None
    elif isinstance(value, float):
        number = int(value) if math.isfinite(value) and value.is_integer() else None
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    if number is None or not 0 <= number <= most:
        raise ValueError(f"{name} = {one_line(str(value))[:40]} cannot be right")
    return number


def _plain(attributes: Sequence[Attribute]) -> dict[str, Any]:
    """Attributes with a scalar value, by name; the first of a name counts."""
    found: dict[str, Any] = {}
    for one in attributes:
        value = one.value
        if value is None:
            continue
        for scalar in (value.stringValue, value.intValue, value.doubleValue, value.boolValue):
            if scalar is not None:
                found.setdefault(one.key, scalar)
                break
    return found


def _tags(told: Mapping[str, Any], resource: Mapping[str, Any], person: str) -> tuple[str, ...]:
    """`name:value` of what was set in `OTEL_RESOURCE_ATTRIBUTES`, who it was, and what the call was for."""
    tags = [f"person:{person}"] if person else []
    tags += [f"query_source:{_text(told, 'query_source')}"] if "query_source" in told else []
    tags += [f"{key}:{resource[key]}" for key in sorted(resource) if not _NOT_TAGS.match(key)]
    return tuple(dict.fromkeys(one_line(tag)[:_TEXT_CHARS_MAX] for tag in tags))[:TAGS_MAX]


def _text(told: Mapping[str, Any], name: str) -> str:
    value = told.get(name, "")
    return one_line(value)[:_TEXT_CHARS_MAX] if isinstance(value, str) else ""


def _digest(told: Mapping[str, Any], at_us: Micros) -> str:
    parts = "\0".join([str(at_us), *(f"{key}={told[key]!r}" for key in sorted(told))])
    return f"event:{hashlib.blake2b(parts.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()}"
