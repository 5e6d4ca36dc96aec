"""The receiver as a process: real HTTP, the real exporter, hostile bodies. Nobody is heard without a key, and whatever comes it answers as OTLP asks."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import closing, contextmanager
from urllib.parse import urlsplit

import pytest

from exporting import OTEL_PYTHON, as_protobuf, event, logs, metrics, point
from fixtures import FIXTURES, needs_fixtures
from tokenweir.errors import ShuttingDown, StoreUnavailable, Unauthenticated
from tokenweir.receiver.asgi import _status_of
from tokenweir.wire.telemetry import COST_METRIC, TOKEN_METRIC

MB = 1024 * 1024
_EXPORT = """
import sys, time
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

resource = Resource({"team": "blue", "service.name": "claude-code"})
provider = LoggerProvider(resource=resource)
provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
told = {"model": "claude-sonnet-5-5", "input_tokens": 11, "output_tokens": 7, "cost_usd": 0.000092, "session.id": "s-otel", "request_id": "req_otel"}
provider.get_logger("t").emit(timestamp=time.time_ns(), body="claude_code.api_request", attributes=told)
assert provider.force_flush()
provider.shutdown()
meters = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())], resource=resource)
tokens = meters.get_meter("t").create_counter("claude_code.token.usage")
tokens.add(11, {"type": "input", "session.id": "s-otel", "model": "claude-sonnet-5-5"})
tokens.add(7, {"type": "output", "session.id": "s-otel", "model": "claude-sonnet-5-5"})
assert meters.force_flush()
meters.shutdown()
"""


class _Running:
    """The receiver, and the commands of an operator beside it."""

    def __init__(self, home):
        home.mkdir(exist_ok=True)
        self.home = home
        self.environment = {**os.environ, "TOKENWEIR_DATA_DIR": str(home / "data")}
        self.key = json.loads(self.run("key", "create", "--team", "blue", "--name", "ada", "--json"))["secret"]
        with (home / "log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tokenweir", "receive", "--port", "0"], stdout=subprocess.PIPE, stderr=log, text=True, env=self.environment
            )
        line = self.process.stdout.readline()
        assert line, (home / "log").read_text()
        self.ready = json.loads(line)
        self.url = self.ready["receiver"]

    def run(self, *arguments):
        done = subprocess.run([sys.executable, "-m", "tokenweir", *arguments], capture_output=True, text=True, env=self.environment, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def entries(self):
        return [json.loads(line) for line in self.run("ledger", "export").splitlines()]

    def connect(self):
        parts = urlsplit(self.url)
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)

    def post(self, path, body, *, key=None, kind="application/json", **headers):
        """Status and body of the answer."""
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = {"content-type": kind, "authorization": f"Bearer {self.key if key is None else key}"} | {
            k.replace("_", "-"): v for k, v in headers.items()
        }
        with closing(self.connect()) as connection:
            connection.request("POST", path, body, head)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30)
        self.process.stdout.close()
        return code


@contextmanager
def running(home):
    receiver = _Running(home)
    try:
        yield receiver
    finally:
        code = receiver.stop()
    assert code == 0


@pytest.fixture(scope="module")
def receiver(tmp_path_factory):
    with running(tmp_path_factory.mktemp("receiver")) as found:
        yield found


@needs_fixtures
def test_the_captures_are_accepted_as_they_are_and_agree_with_each_other(tmp_path):
    bodies = [
        json.loads((FIXTURES / "claude-code" / name).read_text())["body"] for name in ("capture_2_02_v1_logs.json", "capture_2_03_v1_metrics.json")
    ]
    with running(tmp_path / "home") as receiver:
        for _ in range(2):  # sent twice, as after a lost answer
            assert receiver.post("/v1/logs", bodies[0]) == (200, b"{}")
            assert receiver.post("/v1/metrics", bodies[1]) == (200, b"{}")
        (entry,) = receiver.entries()
        assert (entry["source"], entry["cost_nanos"], entry["request_id"]) == ("claude_code_otel", 5_092_000, "req_01Research")
        (row,) = json.loads(receiver.run("telemetry", "--since", "2026-11-22", "--until", "2026-11-23", "--json"))["rows"]
        assert row["tokens_agree"] is True
        assert row["told"] == row["booked"] == {"uncached_input": 11, "cache_write": 2000, "cache_read": 0, "output": 7, "cost_nanos": 5_092_000}
        assert row["difference_nanos"] == 0


@pytest.mark.skipif(not OTEL_PYTHON, reason="TOKENWEIR_OTEL_PYTHON names no Python with the OpenTelemetry exporter")
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_the_official_exporter_is_understood(tmp_path, compression):
    with running(tmp_path / "home") as receiver:
        environment = {
            "PATH": os.environ["PATH"],
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            "OTEL_EXPORTER_OTLP_HEADERS": f"x-api-key={receiver.key}",
            "OTEL_EXPORTER_OTLP_COMPRESSION": compression,
        }
        done = subprocess.run([OTEL_PYTHON, "-c", _EXPORT], env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        (entry,) = receiver.entries()
        assert (entry["session_id"], entry["request_id"]) == ("s-otel", "req_otel")
        (row,) = json.loads(receiver.run("telemetry", "--json"))["rows"]
        assert row["tokens_agree"] is True
        assert row["told"]["output"] == 7


@pytest.mark.parametrize("key", ["", "tw_nobody", "sk-ant-api03-not-ours"])
def test_nobody_is_heard_without_a_key(receiver, key):
    before = receiver.entries()
    status, body = receiver.post("/v1/logs", logs(event(request_id="req_stranger")), key=key)
    assert status in (400, 401)
    assert json.loads(body)["code"] in (3, 16)
    assert receiver.entries() == before


def test_a_key_as_api_key_is_accepted_too(receiver):
    assert receiver.post("/v1/metrics", metrics(COST_METRIC, point(0.5)), authorization="", x_api_key=receiver.key)[0] in (200, 400)
    with closing(receiver.connect()) as connection:
        connection.request("POST", "/v1/logs", b"{}", {"content-type": "application/json", "x-api-key": receiver.key})
        assert connection.getresponse().status == 200


def test_protobuf_is_answered_in_protobuf(receiver):
    export = as_protobuf(logs(event(request_id="req_pb1"), event(request_id="req_pb2", output_tokens=-1)), "Logs")
    status, body = receiver.post("/v1/logs", export, kind="application/x-protobuf")
    assert status == 200
    assert body[0] == 0x0A
    assert b"output_tokens" in body
    assert receiver.post("/v1/metrics", as_protobuf(metrics(TOKEN_METRIC, point(1, type="input")), "Metrics"), kind="application/x-protobuf") == (
        200,
        b"",
    )
    assert "req_pb1" in {entry["request_id"] for entry in receiver.entries()}


def test_what_is_refused_is_said_and_the_rest_is_booked(receiver):
    status, body = receiver.post("/v1/logs", logs(event(request_id="req_bad", model=""), event(request_id="req_part")))
    assert (status, json.loads(body)["partialSuccess"]["rejectedLogRecords"]) == (200, "1")
    ids = {entry["request_id"] for entry in receiver.entries()}
    assert "req_part" in ids
    assert "req_bad" not in ids


@pytest.mark.parametrize(
    ("body", "kind", "encoding", "expected"),
    [
        (b"{", "application/json", None, {400}),
        (b"[" * 200_000, "application/json", None, {400}),
        (b'{"a":' * 200_000, "application/json", None, {400}),
        (b"\xff" * 1000, "application/x-protobuf", None, {400}),
        (b"{}", "text/plain", None, {415}),
        (b"{}", "", None, {415}),
        (b"{}", "application/json", "br", {415}),
        (b"{}", "application/json", "gzip", {400}),
        (gzip.compress(b"{}", mtime=0)[:-3], "application/json", "gzip", {400}),
        (gzip.compress(b"{}", mtime=0) + b"more", "application/json", "gzip", {400}),
        (gzip.compress(b" " * (17 * MB), mtime=0), "application/json", "gzip", {413}),
        (b" " * (16 * MB + 1), "application/json", None, {413}),
    ],
    ids=lambda held: held[:12] if isinstance(held, bytes) else str(held),
)
def test_a_hostile_body_is_refused_and_the_next_one_is_taken(receiver, body, kind, encoding, expected):
    headers = {} if encoding is None else {"content_encoding": encoding}
    try:
        status, answer = receiver.post("/v1/logs", body, kind=kind, **headers)
    except (BrokenPipeError, ConnectionResetError):
        status, answer = 413, b""  # it was refused by its length and closed before we had sent it
    assert status in expected
    if answer and kind != "application/x-protobuf":
        assert json.loads(answer)["message"]
    assert receiver.post("/v1/logs", b"{}")[0] == 200


def test_a_packed_export_is_unpacked(receiver):
    packed = gzip.compress(json.dumps(logs(event(request_id="req_packed"))).encode())
    assert receiver.post("/v1/logs", packed, content_encoding="gzip") == (200, b"{}")
    assert "req_packed" in {entry["request_id"] for entry in receiver.entries()}


def test_spans_are_accepted_and_dropped_and_other_paths_are_not_served(receiver):
    assert receiver.post("/v1/traces", {"resourceSpans": []}) == (200, b"{}")
    assert receiver.post("/v1/messages", {})[0] == 404
    with closing(receiver.connect()) as connection:
        for path, expected in (("/healthz", 200), ("/readyz", 200), ("/metrics", 200), ("/v1/logs", 404)):
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == expected, path


def test_bodies_that_do_not_arrive_take_no_more_than_their_share(receiver):
    head = f"POST /v1/logs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {receiver.key}\r\ncontent-type: application/json\r\ncontent-length: {16 * MB}\r\n\r\n"
    parts = urlsplit(receiver.url)
    waiting = [socket.create_connection((parts.hostname, parts.port), timeout=30) for _ in range(4)]
    try:
        for one in waiting:
            one.sendall(head.encode() + b" ")
        status = 200
        while status == 200:  # until all four are held, there is room
            status, body = receiver.post("/v1/logs", b"{}")
        assert (status, json.loads(body)["code"]) == (503, 14)
    finally:
        for one in waiting:
            one.close()
    while receiver.post("/v1/logs", b"{}")[0] == 503:
        pass


def test_what_may_pass_is_answered_so_that_exporters_try_again():
    assert [_status_of(error) for error in (StoreUnavailable(), ShuttingDown(), Unauthenticated())] == [503, 503, 401]


def test_serve_starts_the_receiver_when_its_port_is_set(tmp_path):
    environment = {
        **os.environ,
        "TOKENWEIR_DATA_DIR": str(tmp_path / "data"),
        "TOKENWEIR_TELEMETRY_RECEIVER__PORT": "0",
        "TOKENWEIR_UPSTREAM__BASE_URL": "http://127.0.0.1:9",
        "TOKENWEIR_UPSTREAM__API_KEY": "sk-ant-sim-red-0123456789",
    }
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tokenweir", "serve", "--port", "0"], stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
    try:
        ready = json.loads(process.stdout.readline())
        assert set(ready["pids"]) == {"supervisor", "gateway", "worker", "receiver"}
        parts = urlsplit(ready["receiver"])
        with closing(http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)) as connection:
            connection.request("POST", "/v1/logs", b"{}", {"content-type": "application/json"})
            assert connection.getresponse().status == 401
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        process.stdout.close()
