"""`tokenweir serve`: the gateway and its worker, under one supervisor."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tokenweir.cli.output import ConfigOption, DataDirOption, fail, print_json, reporting_failures
from tokenweir.cli.root import app


class ServeRole(StrEnum):
    """The processes of `serve`."""

    ALL = "all"
    GATEWAY = "gateway"
    WORKER = "worker"


@app.command()
@reporting_failures
def serve(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    port: Annotated[int | None, typer.Option("--port", min=0, max=65535, help="Port of the gateway; 0 lets the system choose.")] = None,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on; 127.0.0.1 unless set.")] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, max=64, help="Gateway processes; more than one need limits.store_url, to count limits together.")
    ] = 1,
    role: Annotated[ServeRole, typer.Option("--role", help="Run one role alone, under a supervisor of your own.")] = ServeRole.ALL,
    listen_fd: Annotated[int | None, typer.Option("--listen-fd", hidden=True)] = None,
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False,
) -> None:
    """Serve the gateway and book what it meters. Starts from an empty folder; prints one JSON line when ready; ends in order on SIGTERM."""
    from tokenweir import processes
    from tokenweir.settings import load_settings

    overrides: dict[str, object] = {"data_dir": data_dir} if data_dir is not None else {}
    if port is not None:
        overrides["gateway__port"] = port
    if host is not None:
        overrides["gateway__host"] = host
    settings = load_settings(config, **overrides)
    match role:
        case ServeRole.GATEWAY:
            code = processes.run_gateway(settings, announce=print_json, listen_fd=listen_fd)
        case ServeRole.WORKER:
            code = processes.run_worker(settings, announce=print_json, supervised=supervised)
        case ServeRole.ALL:
            code = processes.run_everything(settings, config_arguments=_repeated(config, data_dir), announce=print_json, gateways=workers)
    if code:
        fail("ended out of order; the log above says why", code=code)


def _repeated(config: Path | None, data_dir: Path | None) -> list[str]:
    """The options that the roles need as well."""
    arguments: list[str] = []
    if config is not None:
        arguments += ["--config", str(config.resolve())]
    if data_dir is not None:
        arguments += ["--data-dir", str(data_dir.resolve())]
    return arguments
