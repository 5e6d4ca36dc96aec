"""`tokenweir demo`: a simulated Claude API, the gateway before it, and four teams of simulated programs, live in the terminal.

Nothing in it is special: the same commands a user would start, with an embedded store in a folder that is removed at the end. Three of the teams have
limits that bite (`demo_limits.py`). When it ends it compares the ledger with the simulator's journal of truth, line by line, and what the limits counted
with the ledger. Change together with `demo_play.py` and `simulator/programs.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tokenweir.cli.output import fail, print_json, reporting_failures
from tokenweir.cli.root import app


@app.command()
@reporting_failures
def demo(
    seconds: Annotated[int, typer.Option("--seconds", min=0, help="End after this time; 0 runs until Ctrl-C.")] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Same seed, same programs.")] = 7,
    keep: Annotated[Path | None, typer.Option("--keep", help="Keep the books in this folder; otherwise they are removed at the end.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result only, as JSON.")] = False,
) -> None:
    """Show everything at work, with no key and no account: four simulated teams, three with limits, against a simulated Claude API."""
    import asyncio
    import shutil
    import tempfile

    from tokenweir.cli.demo_play import play

    folder = keep or Path(tempfile.mkdtemp(prefix="tokenweir-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        outcome = asyncio.run(play(folder, seconds=seconds, seed=seed, quiet=as_json))
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        print_json(outcome)
    else:
        _conclude(outcome, keep)
    if outcome["differences"]:
        fail("the ledger and the simulator's journal of truth differ", code=1)


def _conclude(outcome: dict[str, Any], keep: Path | None) -> None:
    from tokenweir.cli.output import note
    from tokenweir.money import format_usd

    note("")
    note(f"{outcome['attempts']:,} attempts, {outcome['tokens']:,} tokens, {format_usd(outcome['cost_nanos'])} booked.")
    note(f"{outcome['exact']:,} equal the simulator's journal of truth, to the token and the nano-dollar.")
    if outcome["flagged"]:
        note(f"{outcome['flagged']:,} were cut short by their clients; they are booked as estimates, and flagged.")
    for limit in outcome["limits"]:
        what = [f"{limit['refused']:,} refused"] if limit["refused"] else []
        what += [f"{limit['waited']:,} waited their turn"] if limit["waited"] else []
        note(f"{limit['name']}: {', '.join(what) or 'nobody was refused'}.")
    if outcome["given"]:
        note(f"At its quota, a team asked for more and was given it {'once' if outcome['given'] == 1 else str(outcome['given']) + ' times'}.")
    for line in outcome["differences"]:
        note(f"  differs: {line}")
    if keep is not None:
        note(f"The books are in {keep / 'books'}; ask them with: tokenweir usage --by team --data-dir {keep / 'books'}")
