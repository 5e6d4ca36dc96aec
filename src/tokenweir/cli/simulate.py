"""`tokenweir simulator`: run the simulated Claude API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenweir.cli.output import ConfigOption, print_json, reporting_failures
from tokenweir.cli.root import app


@app.command("simulator")
@reporting_failures
def simulator(
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 lets the system choose.")] = 8788,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    journal: Annotated[Path | None, typer.Option("--journal", help="File for the journal of truth: one JSON line per attempt.")] = None,
    journal_begins: Annotated[Path | None, typer.Option("--journal-begins", help="File for a line per attempt when it begins.")] = None,
    journal_sync: Annotated[bool, typer.Option("--journal-sync", help="Sync the journal after each line.")] = False,
    scenario: Annotated[Path | None, typer.Option("--scenario", help="TOML or JSON file of rules; see docs/SIMULATOR.md.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Same seed and same requests: same answers.")] = 0,
    pace: Annotated[float | None, typer.Option("--pace", min=0, help="Milliseconds between the events of a stream.")] = None,
    ttfb: Annotated[float | None, typer.Option("--ttfb", min=0, help="Milliseconds until an answer begins.")] = None,
    event_tokens: Annotated[int | None, typer.Option("--event-tokens", min=1, help="Tokens in one event of a stream.")] = None,
    config: ConfigOption = None,
) -> None:
    """Run a simulated Claude API that answers, bills and misbehaves as the real one does."""
    import msgspec
    import uvloop

    from tokenweir.app import SystemClock, open_rate_card
    from tokenweir.errors import OperatorError
    from tokenweir.settings import load_settings
    from tokenweir.simulator.process import open_journal, ready_line, run
    from tokenweir.simulator.scenario import Scenario, read_scenario
    from tokenweir.simulator.server import Simulator

    plan = read_scenario(scenario) if scenario else Scenario()
    asked = {"event_ms": pace, "ttfb_ms": ttfb, "event_tokens": event_tokens}
    changes = {name: value for name, value in asked.items() if value is not None}
    plan = msgspec.structs.replace(plan, pace=msgspec.structs.replace(plan.pace, **changes))
    try:
        truth = open_journal(journal, sync=journal_sync)
        begins = open_journal(journal_begins, sync=journal_sync) if journal_begins else None
        card = open_rate_card(load_settings(config))
        api = Simulator(scenario=plan, seed=seed, card=card, clock=SystemClock(), journal=truth, begins=begins)
        uvloop.run(run(api, host=host, port=port, ready=lambda url: print_json(ready_line(url))))
    except OSError as error:
        raise OperatorError(f"cannot start the simulator: {error}") from error
