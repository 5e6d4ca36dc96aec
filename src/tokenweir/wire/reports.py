"""Pages of the provider's own reports: what kind each is and what time it covers. Nothing here becomes an entry.

They are aggregates over keys and hours, of which no call can be told apart: they say whether the ledger is complete, they are never added to it. Recent
buckets are provisional and Priority Tier is not in the cost report, so even a difference is no proof. Change with it: `ledger_ports.ProviderReport`.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import msgspec

from tokenweir.periods import DAY_US, Micros, parse_instant

KINDS: Final = ("usage", "cost", "claude_code", "analytics_usage", "analytics_cost")


class ReportPage(msgspec.Struct, frozen=True):
    """One page, as it was received."""

    report_id: str
    kind: str
    starting_at_us: Micros
    ending_at_us: Micros
    rows: int
    content: bytes


def read_pages(content: bytes, *, kind: str = "") -> list[ReportPage]:
    """The pages in a file: one, a JSON list of them, or one a line. Raises ValueError with a sentence for the first that is none."""
    return [_page(raw, kind, number) for number, raw in enumerate(_split(content), start=1)]


def _split(content: bytes) -> list[bytes]:
    text = content.strip().removeprefix(b"\xef\xbb\xbf")
    try:
        if text.startswith(b"["):
            return [bytes(raw) for raw in msgspec.json.decode(text, type=list[msgspec.Raw])]
        msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        return [text]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2:
            raise ValueError("the file is not a JSON report") from error
        return lines


def _page(raw: bytes, kind: str, number: int) -> ReportPage:
    try:
        page = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError(f"page {number} is not JSON") from None
    buckets = page.get("data") if isinstance(page, dict) else None
    if not isinstance(buckets, list) or not all(isinstance(bucket, dict) for bucket in buckets):
        raise ValueError(f"page {number} is no report: it has no list `data`")
    found = kind or _kind(buckets)
    if not found:
        raise ValueError(f"page {number} does not tell usage from cost, because it has no rows; name it with --kind")
    if found not in KINDS:
        raise ValueError(f"{found!r} is no kind of report; there are {', '.join(KINDS)}")
    if not buckets:
        raise ValueError(f"page {number} has no buckets, so it says of no time anything")
    spans = [_span(bucket, number) for bucket in buckets]
    rows = sum(len(bucket["results"]) if isinstance(bucket.get("results"), list) else 1 for bucket in buckets)
    digest = hashlib.blake2b(raw, digest_size=16).hexdigest()
    return ReportPage(digest, found, min(start for start, _ in spans), max(end for _, end in spans), rows, raw)


def _kind(buckets: list[dict[str, Any]]) -> str:
    for bucket in buckets:
        if "core_metrics" in bucket or "model_breakdown" in bucket:
            return "claude_code"
        if isinstance(bucket.get("usage"), dict):
            return "analytics_usage"
        if isinstance(bucket.get("cost"), dict):
            return "analytics_cost"
        for row in bucket.get("results") or []:
            if isinstance(row, dict):
                return "cost" if "amount" in row else "usage" if "uncached_input_tokens" in row or "output_tokens" in row else ""
    return ""


def _span(bucket: dict[str, Any], number: int) -> tuple[Micros, Micros]:
    start, end = bucket.get("starting_at", bucket.get("date")), bucket.get("ending_at")
    if not isinstance(start, str):
        raise ValueError(f"page {number} has a bucket without starting_at")  # noqa: TRY004 - the file is wrong, not our call
    start_us = parse_instant(start)
    end_us = parse_instant(end) if isinstance(end, str) else start_us + DAY_US
    if end_us < start_us:
        raise ValueError(f"page {number} has a bucket that ends before it begins")
    return start_us, end_us
