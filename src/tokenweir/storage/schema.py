"""The tables: directory, limits, audit, entries, rollups, checkpoints, imports. One definition for SQLite and PostgreSQL.

The rule it protects: what is written here is what the migrations build, and a test compares the two. Instants are microseconds, money is
nano-USD, both in 64-bit columns. Entries have no foreign keys into the directory: a deleted key must not take its history along, and bookkeeping must never fail for want of a name.
Change with it: a new file in `migrations/versions`, `ledger/entries.py`, `storage/ledger.py`, `storage/directory.py`, `storage/limit_directory.py`.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, PrimaryKeyConstraint, SmallInteger, Table, Text, text

METADATA = MetaData()

SCHEMA_REVISION = "0003"
"""The newest step in `migrations/versions`; a test compares the two. Raise it with every new step."""


def _text(name: str, *, default: bool = False) -> Column[str]:
    return Column(name, Text, nullable=False, server_default="") if default else Column(name, Text, nullable=False)


def _big(name: str, *, nullable: bool = False) -> Column[int]:
    return Column(name, BigInteger, nullable=nullable)


# The directory. `revision` is the value of directory_revision at the last change of the row: `changes_since` reads only what is newer.

ORGANIZATIONS = Table(
    "organizations",
    METADATA,
    Column("organization_id", Text, primary_key=True),
    _text("name"),
    _big("created_at_us"),
    Index("organizations_name", "name", unique=True),
)

TEAMS = Table(
    "teams",
    METADATA,
    Column("team_id", Text, primary_key=True),
    _text("organization_id"),
    _text("name"),
    _big("created_at_us"),
    Index("teams_name", "organization_id", "name", unique=True),
)

KEYS = Table(
    "keys",
    METADATA,
    Column("key_id", Text, primary_key=True),
    _text("organization_id"),
    _text("team_id"),
    _text("name"),
    _text("owner", default=True),
    Column("tags", Text, nullable=False, server_default="[]", comment="JSON array of strings"),
    Column("policy", Text, nullable=False, server_default="{}", comment="JSON of policies.Policy"),
    _big("created_at_us"),
    _big("revoked_at_us", nullable=True),
    _big("revision"),
    Index("keys_revision", "revision"),
    Index(
        "keys_live_name",
        "team_id",
        "name",
        unique=True,
        sqlite_where=text("revoked_at_us IS NULL"),
        postgresql_where=text("revoked_at_us IS NULL"),
    ),
)

KEY_SECRETS = Table(
    "key_secrets",
    METADATA,
    Column("digest", LargeBinary, primary_key=True),
    _text("key_id"),
    _big("created_at_us"),
    _big("expires_at_us", nullable=True),
    _big("removed_at_us", nullable=True),
    _big("revision"),
    Index("key_secrets_key", "key_id"),
    Index("key_secrets_revision", "revision"),
)

CREDENTIALS = Table(
    "credentials",
    METADATA,
    Column("credential_id", Text, primary_key=True),
    _text("organization_id"),
    _text("team_id", default=True),
    _text("source"),
    _text("base_url"),
    Column("sealed", LargeBinary, nullable=False),
    _big("created_at_us"),
    _big("revision"),
    Index("credentials_scope", "organization_id", "team_id", unique=True),
)

# Limits: part of the directory. `revision` of a limit moves with its grants too.

LIMITS = Table(
    "limits",
    METADATA,
    Column("limit_id", Text, primary_key=True),
    _text("organization_id"),
    _text("team_id", default=True),
    _text("key_id", default=True),
    _text("name"),
    Column("content", Text, nullable=False, comment="JSON of limits.limit.Limit; the other columns are for finding it"),
    _big("created_at_us"),
    _big("removed_at_us", nullable=True),
    _big("revision"),
    Index("limits_revision", "revision"),
    Index("limits_scope", "organization_id", "team_id", "key_id"),
    Index(
        "limits_live_name",
        "organization_id",
        "name",
        unique=True,
        sqlite_where=text("removed_at_us IS NULL"),
        postgresql_where=text("removed_at_us IS NULL"),
    ),
)

GRANTS = Table(
    "grants",
    METADATA,
    Column("grant_id", Text, primary_key=True),
    _text("limit_id"),
    Column("kind", Text, nullable=False, comment="credit or increase"),
    Column("amount", BigInteger, nullable=False, comment="units of the limit's resource"),
    _big("effective_at_us"),
    _big("expires_at_us", nullable=True),
    _big("priority"),
    _big("rollover_min"),
    _big("rollover_max", nullable=True),
    _text("reason", default=True),
    _big("created_at_us"),
    _big("voided_at_us", nullable=True),
    Index("grants_limit", "limit_id"),
)

LIMIT_REQUESTS = Table(
    "limit_requests",
    METADATA,
    Column("request_id", Text, primary_key=True),
    _text("limit_id"),
    Column("amount", BigInteger, nullable=False, comment="units of the limit's resource"),
    Column("until_us", BigInteger, nullable=True, comment="NULL: to the end of the cycle in which it is approved"),
    _text("reason", default=True),
    _text("requested_by"),
    _big("created_at_us"),
    Column("state", Text, nullable=False, comment="pending, approved, denied or withdrawn"),
    _text("decided_by", default=True),
    _big("decided_at_us", nullable=True),
    _text("grant_id", default=True),
    Index("limit_requests_limit", "limit_id"),
    Index("limit_requests_state", "state", "created_at_us"),
)

LIMIT_REQUEST_COMMENTS = Table(
    "limit_request_comments",
    METADATA,
    _text("request_id"),
    Column("number", Integer, nullable=False, comment="1, 2, 3 within the request"),
    _big("at_us"),
    _text("said_by"),
    _text("content"),
    PrimaryKeyConstraint("request_id", "number", name="limit_request_comments_pkey"),
)

DIRECTORY_REVISION = Table(
    "directory_revision",
    METADATA,
    Column("one", SmallInteger, primary_key=True, comment="always 1: the table has one row", autoincrement=False),
    _big("revision"),
)

AUDIT = Table(
    "audit",
    METADATA,
    Column("audit_id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    _big("at_us"),
    _text("actor"),
    _text("action"),
    _text("subject"),
    _text("before", default=True),
    _text("after", default=True),
    Index("audit_subject", "subject", "audit_id"),
)

# The ledger. Rows of `entries` are inserted and never changed.

WHERE_TOLD = "dedup_key <> '' AND kind = 'attempt'"
WHERE_METERED = "source = 'gateway' AND kind = 'attempt'"

ENTRIES = Table(
    "entries",
    METADATA,
    Column("entry_id", Text, primary_key=True),
    _text("attempt_id"),
    _text("kind"),
    _big("started_at_us"),
    _big("ended_at_us"),
    _text("request_id"),
    _text("upstream_request_id", default=True),
    _text("message_id", default=True),
    _text("organization_id"),
    _text("team_id"),
    _text("key_id"),
    _text("model_requested"),
    _text("model"),
    Column("stream", SmallInteger, nullable=False),
    Column("status", Integer, nullable=False, comment="HTTP status of the provider's answer; 0 if none came"),
    _text("certainty"),
    _big("uncached_input"),
    _big("cache_write_5m"),
    _big("cache_write_1h"),
    _big("cache_read"),
    _big("output"),
    _big("thinking"),
    _big("web_searches"),
    _big("web_fetches"),
    _big("code_executions"),
    _big("cost_nanos"),
    _big("ceiling_nanos"),
    _text("card_version"),
    _text("service_tier", default=True),
    _text("speed", default=True),
    _text("inference_geo", default=True),
    _text("stop_reason", default=True),
    _text("error_type", default=True),
    _text("cut", default=True),
    _big("first_byte_us"),
    Column("attempt_no", Integer, nullable=False),
    Column("client_retry", Integer, nullable=False),
    _text("session_id", default=True),
    _text("agent_id", default=True),
    _text("parent_agent_id", default=True),
    _text("client", default=True),
    Column("tags", Text, nullable=False, server_default="[]", comment="JSON array of strings"),
    Column("flags", Text, nullable=False, server_default="[]", comment="JSON array of strings"),
    Column("raw_usage", LargeBinary, nullable=False),
    _text("source"),
    _text("reason", default=True),
    _text("dedup_key", default=True),
    Index("entries_started", "started_at_us"),
    Index("entries_adjusted", "attempt_id", sqlite_where=text("kind = 'adjustment'"), postgresql_where=text("kind = 'adjustment'")),
    # What was corrected lately, for those who count beside the ledger.
    Index("entries_corrected", "ended_at_us", sqlite_where=text("kind = 'adjustment'"), postgresql_where=text("kind = 'adjustment'")),
    Index("entries_flagged", "entry_id", sqlite_where=text("flags <> '[]'"), postgresql_where=text("flags <> '[]'")),
    # One record per call and source, whoever books it twice.
    Index("entries_told", "source", "dedup_key", unique=True, sqlite_where=text(WHERE_TOLD), postgresql_where=text(WHERE_TOLD)),
    # What the gateway metered, by the names that other sources know the call by.
    *(
        Index(f"entries_by_{name}", name, sqlite_where=text(WHERE_METERED), postgresql_where=text(WHERE_METERED))
        for name in ("message_id", "request_id", "upstream_request_id")
    ),
)

# Imports: what other sources told of calls, and how far each of them has been read.

CALL_NAMES = Table(
    "call_names",
    METADATA,
    Column("name", Text, primary_key=True, comment="message:…, request:… or row:SOURCE:…"),
    _text("attempt_id"),
    Index("call_names_attempt", "attempt_id"),
)
"""Which attempt stands for the call of that name, for every record that was ever imported, booked or not."""

IMPORTS = Table(
    "imports",
    METADATA,
    Column("import_id", Text, primary_key=True, comment="SOURCE and the place it was read from"),
    _text("source"),
    _text("place"),
    _big("inode"),
    _big("size_bytes"),
    _big("modified_at_us"),
    Column("byte_offset", BigInteger, nullable=False, comment="everything before it has been booked"),
    _big("line_no"),
    _big("rows_read"),
    _big("rows_new"),
    _big("rows_grown"),
    _big("rows_replaced"),
    _big("rows_matched"),
    _big("rows_skipped"),
    _big("rows_refused"),
    _big("first_run_at_us"),
    _big("last_run_at_us"),
    _text("problem", default=True),
)

PROVIDER_REPORTS = Table(
    "provider_reports",
    METADATA,
    Column("report_id", Text, primary_key=True, comment="digest of the content"),
    Column("kind", Text, nullable=False, comment="usage, cost, claude_code, analytics_usage or analytics_cost"),
    _big("starting_at_us"),
    _big("ending_at_us"),
    _big("rows"),
    _big("received_at_us"),
    _text("origin", default=True),
    Column("content", LargeBinary, nullable=False, comment="one page, as it was received"),
    Index("provider_reports_time", "kind", "starting_at_us"),
)
"""What the provider says was used and billed: for reconciliation only, never booked."""

PROVIDER_MODELS = Table(
    "provider_models",
    METADATA,
    Column("model_id", Text, primary_key=True),
    _text("display_name", default=True),
    Column("lifecycle", Text, nullable=False, server_default="", comment="active, deprecated, retired, or empty: not said"),
    Column("created_at", Text, nullable=False, server_default="", comment="dates as the provider writes them"),
    _text("deprecated_at", default=True),
    _text("retires_at", default=True),
    _big("first_seen_at_us"),
    _big("last_seen_at_us"),
    _big("changed_at_us"),
)
"""What the provider lists at `GET /v1/models`, and when it was seen there."""

TELEMETRY_SUMS = Table(
    "telemetry_sums",
    METADATA,
    Column("series_id", Text, primary_key=True, comment="digest of the day and of all that tells the series apart"),
    _big("day_us"),
    _text("organization_id"),
    _text("team_id"),
    _text("key_id"),
    _text("session_id"),
    _text("model"),
    _text("metric"),
    _text("token_type"),
    Column("amount", BigInteger, nullable=False, comment="tokens or nano-USD"),
    _big("points"),
    _big("last_at_us"),
    Index("telemetry_sums_day", "day_us"),
)
"""What Claude Code's own metrics add up to: a cross-check, never booked."""

DIMS = Table(
    "dims",
    METADATA,
    Column("dims_id", BigInteger, primary_key=True, autoincrement=False, comment="derived from the other columns by ledger/rollups.py"),
    _text("organization_id"),
    _text("team_id"),
    _text("key_id"),
    _text("model"),
    _text("service_tier"),
    _text("speed"),
    _text("inference_geo"),
    _text("certainty"),
    Column("unpriced", SmallInteger, nullable=False),
    _text("kind"),
    _text("source"),
    Index("dims_key", "key_id"),
    Index("dims_team", "team_id"),
)


def _rollup(name: str) -> Table:
    return Table(
        name,
        METADATA,
        _big("bucket_us"),
        _big("dims_id"),
        _big("requests"),
        _big("errors"),
        _big("uncached_input"),
        _big("cache_write_5m"),
        _big("cache_write_1h"),
        _big("cache_read"),
        _big("output"),
        _big("thinking"),
        _big("web_searches"),
        _big("cost_nanos"),
        PrimaryKeyConstraint("bucket_us", "dims_id", name=f"{name}_pkey"),
        sqlite_with_rowid=False,
    )


ROLLUP_15M = _rollup("rollup_15m")
ROLLUP_DAY = _rollup("rollup_day")

JOURNAL_CHECKPOINTS = Table(
    "journal_checkpoints",
    METADATA,
    Column("writer", Text, primary_key=True),
    _big("segment"),
    _big("byte_offset"),
)

META = Table("meta", METADATA, Column("name", Text, primary_key=True), _text("value"))
"""`created_by` and `upgraded_by`: versions of Tokenweir, for the sentence that an older one prints. The schema's own revision is Alembic's."""
