"""The tables, as SQLAlchemy Core sees them. `bot/migrations` makes them; a test holds the two together.

Times are seconds since 1970, costs calibrated device-seconds. Portable between SQLite and PostgreSQL.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(26), primary_key=True),  # ULIDs sort by time: `id` is the order of arrival
    Column("key", String(128)),  # idempotency: what the front end calls this request
    Column("ordinal", Integer, nullable=False),  # one request may make several jobs (permutations)
    Column("state", String(16), nullable=False),
    Column("action", String(16), nullable=False),
    Column("parent", String(26)),
    Column("parent_index", Integer),
    Column("prompt", Text, nullable=False),
    Column("notes", JSON, nullable=False),
    Column("task", LargeBinary, nullable=False),  # the Recipe or Enlarge as it goes over the wire
    Column("member", String(64), nullable=False),
    Column("member_name", String(128), nullable=False),
    Column("guild", String(64), nullable=False),
    Column("tier", String(64), nullable=False),
    Column("weight", Float, nullable=False),
    Column("pool", String(64), nullable=False),
    Column("model", String(64), nullable=False),  # empty: any worker of the pool
    Column("account", String(512), nullable=False),  # the user's account in the fair order
    Column("rows", Integer, nullable=False),
    Column("cost", Float, nullable=False),  # reserved at admission
    Column("charged", Float, nullable=False),  # counts against the limits: reserved, then what was really spent
    Column("billed", Float, nullable=False),  # what the accounts' virtual time has been advanced by
    Column("attempt", Integer, nullable=False),
    Column("barren", Integer, nullable=False),  # attempts without progress since the last progress
    Column("step", Integer, nullable=False),  # as far as a worker is known to have come
    Column("epoch", BigInteger, nullable=False),
    Column("worker", String(64), nullable=False),
    Column("cancelling", Boolean, nullable=False),
    Column("created", Float, nullable=False),
    Column("deadline", Float, nullable=False),
    Column("sent", Float),
    Column("started", Float),
    Column("ended", Float),
    Column("seconds", Float),
    Column("ms_per_step", Float),
    Column("reason", Text, nullable=False),
    Column("blame", String(16), nullable=False),
    Index("jobs_key", "key", "ordinal", unique=True),
    Index("jobs_waiting", "account", "state", "id"),
    Index("jobs_state", "state", "pool", "rows"),
    Index("jobs_deadline", "state", "deadline"),
    Index("jobs_member_state", "member", "state"),
    Index("jobs_member_created", "member", "created"),
    Index("jobs_guild", "guild", "id"),
)

places = Table(
    "places",
    metadata,
    Column("job", String(26), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("where", JSON, nullable=False),
    Column("delivered", Float),
    Index("places_undelivered", "kind", "delivered"),
)

pictures = Table(
    "pictures",
    metadata,
    Column("job", String(26), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("image", Integer, primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("sha256", String(64), nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
)

accounts = Table(  # the fair order: pool → tier → guild → user
    "accounts",
    metadata,
    Column("path", String(512), primary_key=True),
    Column("parent", String(512), nullable=False),
    Column("virtual", Float, nullable=False),  # cost ÷ weight that this account has had, among its siblings
    Column("floor", Float, nullable=False),  # the virtual time at which its children are served now
    Column("weight", Float, nullable=False),
    Column("queued", Integer, nullable=False),
    Column("active", Integer, nullable=False),
    Index(
        "accounts_order",
        "parent",
        "virtual",
        "path",
        sqlite_where=text("queued > 0"),
        postgresql_where=text("queued > 0"),
    ),
)

moves = Table(  # one row for each transition that happened
    "moves",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("job", String(26), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("at", Float, nullable=False),
    Column("source", String(16), nullable=False),
    Column("target", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("why", Text, nullable=False),
    Index("moves_job", "job", "id"),
)

models = Table(  # the last known profile of every model that a worker ever had ready
    "models",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("warm", LargeBinary, nullable=False),
    Column("pool", String(64), nullable=False),
    Column("seen", Float, nullable=False),
)
