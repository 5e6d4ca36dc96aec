"""Writes the pages that are drawn from the code: SETTINGS.md and TELEMETRY.md. A test fails when they are not up to date.

Run it with `make docs`.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from tokenweir import telemetry
from tokenweir.settings import Settings

HERE = Path(__file__).parent


def settings_page() -> str:
    """Every setting with its name in the environment, its default and its meaning."""
    lines = [
        "# Settings",
        "",
        "Drawn from `src/tokenweir/settings.py` by `make docs`. A TOML file (`--config FILE`) and the environment use the same names; the environment",
        "wins, and command-line options beat both. A file that holds a secret must not be readable by others.",
        "",
    ]
    tables: dict[str, type[BaseModel]] = {}
    plain: list[str] = []
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            tables[name] = field.annotation
        else:
            plain.append(_row(f"TOKENWEIR_{name.upper()}", name, field))
    head = ["| in the file | in the environment | default | meaning |", "|---|---|---|---|"]
    lines += head + plain
    for table, model in tables.items():
        lines += ["", f"## [{table}]", "", inspect.cleandoc(model.__doc__ or "").split("\n")[0], "", *head]
        lines += [_row(f"TOKENWEIR_{table.upper()}__{name.upper()}", name, field) for name, field in model.model_fields.items()]
    return "\n".join(lines) + "\n"


def _row(variable: str, name: str, field: object) -> str:
    default = getattr(field, "default", None)
    factory = getattr(field, "default_factory", None)
    shown = "`~/.tokenweir`" if factory else "" if default in (None, PydanticUndefined, ()) else f"`{default}`"
    meaning = " ".join((getattr(field, "description", "") or "").split())
    return f"| `{name}` | `{variable}` | {shown} | {meaning} |"


def telemetry_page() -> str:
    """Every metric and every log event."""
    lines = [
        "# Metrics and logs",
        "",
        "Drawn from `src/tokenweir/telemetry.py` by `make docs`. `GET /metrics` on the gateway serves this machine only. No label holds a key, a team or",
        "a prompt, so the number of series is bounded. Logs are JSON lines on standard error.",
        "",
        "| metric | type | labels | meaning |",
        "|---|---|---|---|",
    ]
    for metric in vars(telemetry).values():
        if hasattr(metric, "_documentation") and hasattr(metric, "_labelnames"):
            labels = ", ".join(metric._labelnames)  # noqa: SLF001 - the library has no public way to ask
            lines.append(f"| `{metric._name}` | {metric._type} | {labels} | {metric._documentation} |")  # noqa: SLF001
    lines += ["", "| log event | meaning |", "|---|---|"]
    source = inspect.getsource(telemetry)
    block = source[source.index("Event: TypeAlias") : source.index('"""Every log event')]
    lines += [f"| `{name}` | {meaning} |" for name, meaning in re.findall(r'"(\w+)",  # (.+)', block)]
    return "\n".join(lines) + "\n"


PAGES = {"SETTINGS.md": settings_page, "TELEMETRY.md": telemetry_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), "utf-8")
