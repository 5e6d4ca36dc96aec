"""`tokenweir limit history`: who changed a limit, when, and what it was before; from the audit."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

from tokenweir.cli.limits import LimitArgument, limit_app
from tokenweir.cli.output import ConfigOption, DataDirOption, JsonOption, print_json, print_table, reporting_failures

if TYPE_CHECKING:
    from tokenweir.limit_ports import LimitRecord
    from tokenweir.limits.limit import Resource
    from tokenweir.ports import AuditRecord


@limit_app.command("history")
@reporting_failures
def history(limit: LimitArgument, *, as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Show who changed a limit, when, and what was before.

    Its grants and requests for more are told too.
    """
    from tokenweir import app as wiring
    from tokenweir import limiting
    from tokenweir.cli.limit_fields import when
    from tokenweir.settings import load_settings

    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    with closing(wiring.open_directory(settings)) as directory, closing(wiring.open_limit_directory(settings)) as limits:
        record = limiting.show_limit(limits, limit)
        changes = limiting.history_of(directory, limits, limit)
        resources = {one.limit.limit_id: one.limit.resource for one in limits.limits(removed=True, named=record.limit.name)}
    if as_json:
        print_json([_plain(one) for one in changes])
        return
    rows = [[when(one.at_us), one.actor, one.action.replace(".", " "), one.subject, _what(one, record, resources)] for one in changes]
    print_table(["at", "who", "what", "id", "change"], rows, title=f"{record.limit.name} ({record.limit.limit_id})")


def _plain(change: AuditRecord) -> dict[str, Any]:
    from tokenweir.periods import format_instant

    return {
        "at": format_instant(change.at_us),
        "by": change.actor,
        "action": change.action,
        "id": change.subject,
        "before": json.loads(change.before) if change.before else None,
        "after": json.loads(change.after) if change.after else None,
    }


def _what(change: AuditRecord, record: LimitRecord, resources: dict[str, Resource]) -> str:
    """One line for people: what is different afterwards."""
    import msgspec
    from msgspec.structs import replace

    from tokenweir.cli.limit_fields import action_of, amount_of, field_of, window_of
    from tokenweir.limits.identity import changed_fields
    from tokenweir.limits.limit import Limit

    subject, _, verb = change.action.partition(".")
    if subject == "limit":
        before, after = (msgspec.json.decode(text, type=Limit) if text else None for text in (change.before, change.after))
        if before is not None and after is not None:
            old, new = replace(record, limit=before), replace(record, limit=after)
            return "; ".join(f"{name.replace('_', ' ')} {field_of(old, name)} → {field_of(new, name)}" for name in changed_fields(before, after))
        one = after or before
        return "" if one is None else f"{amount_of(one.amount, one.resource)} {window_of(one)}".strip() + f", {action_of(one)}"
    told = json.loads(change.after or change.before)
    match verb:
        case "added" | "created" | "voided":
            amount = amount_of(told["amount"], resources.get(told["limit_id"], record.limit.resource))
            return f"{amount} · {told['reason']}" if told["reason"] else amount
        case "moved":
            return f"from {json.loads(change.before)['limit_id']} to {told['limit_id']}"
        case "commented":
            return str(told["text"])
        case _:
            return str(told["comments"][-1]["text"]) if told.get("comments") else "-"
