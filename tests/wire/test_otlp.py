"""OTLP's two forms: one export reads the same in both, and the answers are what exporters expect."""

from __future__ import annotations

import json
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporting import OTEL_PYTHON, as_protobuf, event, logs, metrics, point
from fixtures import FIXTURES, needs_fixtures
from tokenweir.wire.otlp import Logs, Metrics, decode, failure, response
from tokenweir.wire.telemetry import COST_METRIC, TOKEN_METRIC, read_logs, read_metrics

EXPORTS = [
    ("Logs", read_logs, logs(event(), event(request_id="req_2", cost_usd=1.5, without=("cost_usd_micros",)), event(body="claude_code.user_prompt"))),
    ("Metrics", read_metrics, metrics(TOKEN_METRIC, point(11, type="input"), point(7, type="output"))),
    ("Metrics", read_metrics, metrics(COST_METRIC, point(0.005092), temporality=2)),
]
_TO_PROTOBUF = """
import json, sys
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
kind, export = json.load(sys.stdin)
message = {"Logs": ExportLogsServiceRequest, "Metrics": ExportMetricsServiceRequest}[kind]()
sys.stdout.buffer.write(ParseDict(export, message, ignore_unknown_fields=True).SerializeToString())
"""


@pytest.mark.parametrize(("message", "read", "export"), EXPORTS)
def test_both_forms_read_the_same(message, read, export):
    plain = read(json.dumps(export).encode(), protobuf=False)
    assert plain.requests or plain.points
    assert read(as_protobuf(export, message), protobuf=True) == plain


@needs_fixtures
@pytest.mark.skipif(not OTEL_PYTHON, reason="TOKENWEIR_OTEL_PYTHON names no Python with the OpenTelemetry exporter")
@pytest.mark.parametrize(
    ("message", "read", "name"), [("Logs", read_logs, "capture_2_02_v1_logs.json"), ("Metrics", read_metrics, "capture_2_03_v1_metrics.json")]
)
def test_the_captures_read_the_same_when_the_official_library_writes_them_as_protobuf(message, read, name):
    export = json.loads((FIXTURES / "claude-code" / name).read_text())["body"]
    done = subprocess.run([OTEL_PYTHON, "-c", _TO_PROTOBUF], input=json.dumps([message, export]).encode(), capture_output=True, check=True)
    told = read(done.stdout, protobuf=True)
    assert told == read(json.dumps(export).encode(), protobuf=False)
    assert told.requests or told.points


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b"null", b'{"resourceLogs": 7}', b'{"resourceLogs": [null]}', b"\xff\xfe", b'{"resourceLogs": "' + b"a" * 10]
)
def test_what_is_no_export_is_refused_with_a_sentence(body):
    with pytest.raises(ValueError, match=r"^the body "):
        decode(body, Logs, protobuf=False)


@pytest.mark.parametrize("unit", [b'{"resourceLogs":[', b'{"a":', b"["])
def test_deep_nesting_is_refused_or_stepped_over_and_nothing_else(unit):
    with pytest.raises(ValueError, match=r"^the body "):
        decode(unit * 100_000, Logs, protobuf=False)


@pytest.mark.parametrize("number", ["9" * 100_000, "1e999999", "-" + "9" * 5000])
def test_a_monstrous_number_is_no_number_of_tokens(number):
    record = json.dumps(logs(event())).replace('"intValue": 11', f'"intValue": {number}').encode()
    try:
        reading = read_logs(record, protobuf=False)
    except ValueError:
        return
    assert not reading.requests


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(body):
    sentences = []
    for shape in (Logs, Metrics):
        for protobuf in (False, True):
            try:
                decode(body, shape, protobuf=protobuf)
            except ValueError as refusal:
                sentences.append(str(refusal))
    assert all(sentence.isprintable() for sentence in sentences)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_an_export_with_one_byte_changed_is_read_or_refused(place, byte):
    body = bytearray(as_protobuf(logs(event(), event(request_id="req_2")), "Logs"))
    body[place % len(body)] = byte
    try:
        reading = read_logs(bytes(body), protobuf=True)
    except ValueError:
        return
    for request in reading.requests:
        assert all(0 <= count <= 10**10 for count in (request.usage.uncached_input, request.usage.output, request.usage.cache_write_5m))


def test_a_whole_success_is_an_empty_message():
    assert response("logs", refused=0, problem="", protobuf=True) == b""
    assert json.loads(response("metrics", refused=0, problem="", protobuf=False)) == {}


def test_what_was_refused_is_counted_in_the_answer():
    told = json.loads(response("logs", refused=2, problem="names no model", protobuf=False))
    assert told == {"partialSuccess": {"rejectedLogRecords": "2", "errorMessage": "names no model"}}
    assert json.loads(response("metrics", refused=1, problem="x", protobuf=False))["partialSuccess"]["rejectedDataPoints"] == "1"
    assert response("logs", refused=2, problem="no", protobuf=True) == b"\x0a\x06\x08\x02\x12\x02no"


def test_a_failure_is_a_status():
    assert json.loads(failure(16, "no key", protobuf=False)) == {"code": 16, "message": "no key"}
    assert failure(16, "no", protobuf=True) == b"\x08\x10\x12\x02no"
