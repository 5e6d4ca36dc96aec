"""`tokenweir models status`: what the provider lists, what is new or about to end, and who still uses it.

The list is read by the worker once a day; `--refresh` reads it now. What the provider does not say is taken from the rate card.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenweir.cli.output import ConfigOption, DataDirOption, JsonOption, note, print_json, print_table, reporting_failures
from tokenweir.cli.root import app
from tokenweir.errors import NotFound

if TYPE_CHECKING:
    from tokenweir.ledger_ports import ProviderModel
    from tokenweir.periods import Micros
    from tokenweir.pricing.rate_card import RateCard
    from tokenweir.settings import Settings

models_app = typer.Typer(help="The provider's models: new ones, those that are about to end, and who uses them.", no_args_is_help=True)
app.add_typer(models_app, name="models")

USE_DAYS = 30
"""Who used a model within so many days still uses it."""
NEW_DAYS = 30


@models_app.command("status")
@reporting_failures
def status(
    *,
    refresh: Annotated[bool, typer.Option("--refresh", help="Ask the provider now (a list of models costs nothing).")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Show active models that nobody uses as well.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Show new, deprecated and retired models, with their dates and the keys that still use them."""
    from tokenweir.settings import load_settings

    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    if refresh:
        _refresh(settings)
    found = model_status(settings)
    if as_json:
        print_json(found)
        return
    if found["listed_at"] is None:
        note(
            "The provider's list has not been read yet; the worker reads it once a day, or run this with --refresh. Shown is what the rate card knows."
        )
    else:
        sys.stdout.write(f"as the provider listed them at {found['listed_at']}\n")
    shown = [model for model in found["models"] if everything or _matters(model)]
    rows = [
        [
            model["model"],
            "new" if model["new"] and model["state"] == "active" else model["state"],
            model["deprecated_at"][:10],
            model["retires_at"][:10],
            "" if model["priced"] else "no rate",
            f"{sum(user['requests'] for user in model['used_by']):,}" if model["used_by"] else "",
            ", ".join(f"{user['team']}/{user['key_name']}" for user in model["used_by"]),
        ]
        for model in shown
    ]
    if rows:
        columns = ["model", "state", "deprecated", "retires", "rate", f"requests, {USE_DAYS} days", "used by"]
        print_table(columns, rows, right=[f"requests, {USE_DAYS} days"])
    for model in ending(found):
        note(f"{model['model']} {when(model)} and is still used by {', '.join(sorted({user['team'] for user in model['used_by']}))}.")


def model_status(settings: Settings) -> dict[str, Any]:
    """Every model that the provider ever listed or the ledger has seen lately, with what is known of its end and its users."""
    from tokenweir import app as wiring
    from tokenweir.periods import DAY_US, format_instant

    now_us = wiring.SystemClock().now_us()
    card = wiring.open_rate_card(settings)
    try:
        with ExitStack() as stack:
            listed = stack.enter_context(closing(wiring.open_provider_models(settings))).listed()
            users = _users(settings, card, now_us - USE_DAYS * DAY_US)
    except NotFound:
        listed, users = [], {}
    listed_at_us = max((model.last_seen_at_us for model in listed), default=None)
    first_us = min((model.first_seen_at_us for model in listed), default=0)
    known = {card.resolve(model.model_id) or model.model_id: model for model in listed}
    names = dict.fromkeys([*known, *users, *(() if listed else (facts.model for facts in card.models()))])
    return {
        "listed_at": None if listed_at_us is None else format_instant(listed_at_us),
        "models": [
            {
                **_dates(name, known.get(name), card, listed_at_us, now_us),
                "new": name in known and first_us < known[name].first_seen_at_us >= now_us - NEW_DAYS * DAY_US,
                "priced": not card.rates(name, 0, now_us).unpriced,
                "used_by": users.get(name, []),
            }
            for name in sorted(names)
        ],
    }


def ending(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The models that end or have ended and are still used."""
    return [model for model in found["models"] if model["used_by"] and (model["state"] != "active" or model["retires_at"])]


def when(model: dict[str, Any]) -> str:
    """What becomes of it, as the end of a sentence."""
    if model["state"] in ("retired", "gone"):
        return f"is {model['state']}"
    return f"retires on {model['retires_at'][:10]}" if model["retires_at"] else f"is {model['state']}"


def _matters(model: dict[str, Any]) -> bool:
    """Whether somebody should see it without asking for all."""
    if model["state"] == "active":
        return bool(model["used_by"]) or model["new"] or not model["priced"]
    return bool(model["used_by"]) or model["state"] != "retired"


def _dates(name: str, model: ProviderModel | None, card: RateCard, listed_at_us: Micros | None, now_us: Micros) -> dict[str, Any]:
    from tokenweir.periods import format_instant, parse_instant

    canonical = card.resolve(name)
    facts = None if canonical is None else card.model(canonical)
    state = (model.lifecycle if model else "") or (facts.lifecycle if facts else "") or ("active" if model else "unlisted")
    retires_at = (model.retires_at if model else "") or (facts.retires_on or "" if facts else "")
    try:
        if retires_at and parse_instant(retires_at) <= now_us:
            state = "retired"
    except ValueError:
        retires_at = ""  # a date that nobody can read is none
    if model is not None and listed_at_us is not None and model.last_seen_at_us < listed_at_us:
        state = "retired" if state == "retired" else "gone"
    return {
        "model": model.model_id if model else name,
        "state": state,
        "deprecated_at": model.deprecated_at if model else "",
        "retires_at": retires_at,
        "first_seen_at": format_instant(model.first_seen_at_us) if model else None,
        "last_seen_at": format_instant(model.last_seen_at_us) if model else None,
    }


def _users(settings: Settings, card: RateCard, since_us: Micros) -> dict[str, list[dict[str, Any]]]:
    """By model under the card's name, the keys that used it since."""
    from tokenweir import app as wiring
    from tokenweir.metering.spend import Query, spend

    found: dict[str, dict[tuple[str, str], list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    with closing(wiring.open_ledger(settings)) as store:
        for row in spend(store, Query(since_us=since_us, by=("model", "team", "key"))).rows:
            model, team, key = row.group
            figures = found[card.resolve(model) or model][team, key]
            figures[0] += row.sums.requests
            figures[1] += row.sums.cost_nanos
        with store.snapshot() as snapshot:
            names = snapshot.names()
    return {
        model: [
            {
                "team": names.teams.get(team, team),
                "team_id": team,
                "key": key,
                "key_name": names.keys.get(key, key),
                "requests": requests,
                "cost_nanos": cost_nanos,
            }
            for (team, key), (requests, cost_nanos) in sorted(keys.items())
            if requests > 0
        ]
        for model, keys in found.items()
        if model
    }


def _refresh(settings: Settings) -> None:
    from tokenweir import app as wiring
    from tokenweir.workers.model_watch import look

    wiring.open_engine(settings, create=True).dispose()
    with closing(wiring.open_provider_models(settings)) as models:
        look(settings, models, wiring.any_upstream_key(settings), now_us=wiring.SystemClock().now_us())
