"""Imports: the dedup key of entries, names of calls, progress of each source, reports and models of the provider, sums of metrics.

Revision 0002, after 0001. What is in the ledger stays as it is: an attempt of the gateway is told apart by its own id and needs no dedup key.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

TOLD = "dedup_key <> '' AND kind = 'attempt'"
METERED = "source = 'gateway' AND kind = 'attempt'"


def upgrade() -> None:
    """Add a column with a default, which rewrites no row, indexes, and five tables."""
    op.add_column("entries", sa.Column("dedup_key", sa.Text(), server_default="", nullable=False))
    op.create_index("entries_told", "entries", ["source", "dedup_key"], unique=True, sqlite_where=sa.text(TOLD), postgresql_where=sa.text(TOLD))
    for name in ("message_id", "request_id", "upstream_request_id"):
        op.create_index(f"entries_by_{name}", "entries", [name], unique=False, sqlite_where=sa.text(METERED), postgresql_where=sa.text(METERED))
    op.create_table(
        "call_names",
        sa.Column("name", sa.Text(), nullable=False, comment="message:…, request:… or row:SOURCE:…"),
        sa.Column("attempt_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_index("call_names_attempt", "call_names", ["attempt_id"], unique=False)
    op.create_table(
        "imports",
        sa.Column("import_id", sa.Text(), nullable=False, comment="SOURCE and the place it was read from"),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("inode", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("modified_at_us", sa.BigInteger(), nullable=False),
        sa.Column("byte_offset", sa.BigInteger(), nullable=False, comment="everything before it has been booked"),
        sa.Column("line_no", sa.BigInteger(), nullable=False),
        sa.Column("rows_read", sa.BigInteger(), nullable=False),
        sa.Column("rows_new", sa.BigInteger(), nullable=False),
        sa.Column("rows_grown", sa.BigInteger(), nullable=False),
        sa.Column("rows_replaced", sa.BigInteger(), nullable=False),
        sa.Column("rows_matched", sa.BigInteger(), nullable=False),
        sa.Column("rows_skipped", sa.BigInteger(), nullable=False),
        sa.Column("rows_refused", sa.BigInteger(), nullable=False),
        sa.Column("first_run_at_us", sa.BigInteger(), nullable=False),
        sa.Column("last_run_at_us", sa.BigInteger(), nullable=False),
        sa.Column("problem", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("import_id"),
    )
    op.create_table(
        "provider_reports",
        sa.Column("report_id", sa.Text(), nullable=False, comment="digest of the content"),
        sa.Column("kind", sa.Text(), nullable=False, comment="usage, cost, claude_code, analytics_usage or analytics_cost"),
        sa.Column("starting_at_us", sa.BigInteger(), nullable=False),
        sa.Column("ending_at_us", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("received_at_us", sa.BigInteger(), nullable=False),
        sa.Column("origin", sa.Text(), server_default="", nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False, comment="one page, as it was received"),
        sa.PrimaryKeyConstraint("report_id"),
    )
    op.create_index("provider_reports_time", "provider_reports", ["kind", "starting_at_us"], unique=False)
    op.create_table(
        "provider_models",
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("display_name", sa.Text(), server_default="", nullable=False),
        sa.Column("lifecycle", sa.Text(), server_default="", nullable=False, comment="active, deprecated, retired, or empty: not said"),
        sa.Column("created_at", sa.Text(), server_default="", nullable=False, comment="dates as the provider writes them"),
        sa.Column("deprecated_at", sa.Text(), server_default="", nullable=False),
        sa.Column("retires_at", sa.Text(), server_default="", nullable=False),
        sa.Column("first_seen_at_us", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_at_us", sa.BigInteger(), nullable=False),
        sa.Column("changed_at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("model_id"),
    )
    op.create_table(
        "telemetry_sums",
        sa.Column("series_id", sa.Text(), nullable=False, comment="digest of the day and of all that tells the series apart"),
        sa.Column("day_us", sa.BigInteger(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("team_id", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("token_type", sa.Text(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False, comment="tokens or nano-USD"),
        sa.Column("points", sa.BigInteger(), nullable=False),
        sa.Column("last_at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("series_id"),
    )
    op.create_index("telemetry_sums_day", "telemetry_sums", ["day_us"], unique=False)
