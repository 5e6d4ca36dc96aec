"""Limits: what was set, what was granted on top, and requests for more.

Revision 0003, after 0002. Four new tables; and indexes of what was corrected lately and of the cells of a key or team, so that counters can
be compared with the ledger. Nothing that is there is touched.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

LIVE = "removed_at_us IS NULL"


def upgrade() -> None:
    """Add the tables of limits, and the index."""
    op.create_index("audit_subject", "audit", ["subject", "audit_id"], unique=False)
    op.create_table(
        "limits",
        sa.Column("limit_id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("team_id", sa.Text(), server_default="", nullable=False),
        sa.Column("key_id", sa.Text(), server_default="", nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False, comment="JSON of limits.limit.Limit; the other columns are for finding it"),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("removed_at_us", sa.BigInteger(), nullable=True),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("limit_id"),
    )
    op.create_index("limits_revision", "limits", ["revision"], unique=False)
    op.create_index("limits_scope", "limits", ["organization_id", "team_id", "key_id"], unique=False)
    op.create_index(
        "limits_live_name", "limits", ["organization_id", "name"], unique=True, sqlite_where=sa.text(LIVE), postgresql_where=sa.text(LIVE)
    )
    op.create_table(
        "grants",
        sa.Column("grant_id", sa.Text(), nullable=False),
        sa.Column("limit_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False, comment="credit or increase"),
        sa.Column("amount", sa.BigInteger(), nullable=False, comment="units of the limit's resource"),
        sa.Column("effective_at_us", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_us", sa.BigInteger(), nullable=True),
        sa.Column("priority", sa.BigInteger(), nullable=False),
        sa.Column("rollover_min", sa.BigInteger(), nullable=False),
        sa.Column("rollover_max", sa.BigInteger(), nullable=True),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("voided_at_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("grant_id"),
    )
    op.create_index("grants_limit", "grants", ["limit_id"], unique=False)
    op.create_table(
        "limit_requests",
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("limit_id", sa.Text(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False, comment="units of the limit's resource"),
        sa.Column("until_us", sa.BigInteger(), nullable=True, comment="NULL: to the end of the cycle in which it is approved"),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False, comment="pending, approved, denied or withdrawn"),
        sa.Column("decided_by", sa.Text(), server_default="", nullable=False),
        sa.Column("decided_at_us", sa.BigInteger(), nullable=True),
        sa.Column("grant_id", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("request_id"),
    )
    op.create_index("limit_requests_limit", "limit_requests", ["limit_id"], unique=False)
    op.create_index("limit_requests_state", "limit_requests", ["state", "created_at_us"], unique=False)
    op.create_table(
        "limit_request_comments",
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False, comment="1, 2, 3 within the request"),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("said_by", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("request_id", "number", name="limit_request_comments_pkey"),
    )
    op.create_index(
        "entries_corrected",
        "entries",
        ["ended_at_us"],
        unique=False,
        sqlite_where=sa.text("kind = 'adjustment'"),
        postgresql_where=sa.text("kind = 'adjustment'"),
    )
    op.create_index("dims_key", "dims", ["key_id"], unique=False)
    op.create_index("dims_team", "dims", ["team_id"], unique=False)
