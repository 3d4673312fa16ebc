"""The tables, in SQLAlchemy Core.

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
    false,
    text,
)

metadata = MetaData()

# SQLite numbers rows by INTEGER only, which is 64-bit there
ROW_NUMBER = BigInteger().with_variant(Integer(), "sqlite")
# sorted by code points, as in `bot.policy.fair_queue`
PATH_TYPE = String(512).with_variant(String(512, collation="C"), "postgresql")


def _partial_index(name: str, columns: tuple[str, ...], condition: str) -> Index:
    return Index(name, *columns, sqlite_where=text(condition), postgresql_where=text(condition))


jobs = Table(
    "jobs",
    metadata,
    Column("id", String(26), primary_key=True),  # ULIDs sort by time: `id` is the order of arrival
    Column("key", String(128)),  # idempotency key, chosen by the front end
    Column("ordinal", Integer, nullable=False),  # position within its request: permutations make several jobs
    Column("state", String(16), nullable=False),
    Column("action", String(16), nullable=False),
    Column("parent", String(26)),
    Column("parent_index", Integer),
    Column("prompt", Text, nullable=False),
    Column("notes", JSON, nullable=False),
    Column("task", LargeBinary, nullable=False),  # the Recipe or Enlarge in wire format
    Column("member", String(64), nullable=False),
    Column("member_name", String(128), nullable=False),
    Column("guild", String(64), nullable=False),
    Column("channel", String(64), nullable=False, server_default=""),  # channel of the request or of its parent
    Column("thread", String(64), nullable=False, server_default=""),  # private thread of the request, in that channel
    Column("private", Boolean, nullable=False, server_default=false()),  # visible to its author only
    Column("check", Boolean, nullable=False, server_default=false()),  # its pictures need the picture check
    Column("deleted", Float),  # when its pictures were deleted
    Column("running_here", Integer),  # the member's limit of jobs at once in this guild, at admission
    Column("running_everywhere", Integer),  # and in all guilds
    Column("tier", String(64), nullable=False),
    Column("weight", Float, nullable=False),
    Column("pool", String(64), nullable=False),
    Column("model", String(64), nullable=False),  # empty: any worker of the pool
    Column("account", PATH_TYPE, nullable=False),  # the user's account in the fair order
    Column("rows", Integer, nullable=False),
    Column("cost", Float, nullable=False),  # reserved at admission
    Column("charged", Float, nullable=False),  # counts against quotas: the reserve first, the real cost at the end
    Column("billed", Float, nullable=False, default=0.0),  # cost by which the accounts' virtual time was advanced
    Column("attempt", Integer, nullable=False, default=1),
    Column("barren", Integer, nullable=False, default=0),  # attempts without progress since the last progress
    Column("step", Integer, nullable=False, default=0),  # the furthest step known
    Column("epoch", BigInteger, nullable=False, default=0),
    Column("worker", String(64), nullable=False, default=""),
    Column("cancelling", Boolean, nullable=False, default=False),
    Column("created", Float, nullable=False),
    Column("deadline", Float, nullable=False),
    Column("sent", Float),
    Column("started", Float),
    Column("ended", Float),
    Column("seconds", Float),
    Column("ms_per_step", Float),
    Column("reason", Text, nullable=False, default=""),
    Column("blame", String(16), nullable=False, default=""),
    Index("jobs_key", "key", "ordinal", unique=True),
    Index("jobs_waiting", "account", "state", "id"),
    Index("jobs_state", "state", "pool", "rows"),
    Index("jobs_deadline", "state", "deadline"),
    Index("jobs_member_state", "member", "state"),
    Index("jobs_member_created", "member", "created"),
    Index("jobs_guild", "guild", "id"),
    Index("jobs_guild_created", "guild", "created", "channel", "charged"),
    Index("jobs_parent", "parent", "action"),
    Index("jobs_guild_state", "guild", "state", "channel"),
    _partial_index("jobs_deleted", ("id",), "deleted IS NOT NULL"),
    Index("jobs_channel", "guild", "channel", "id"),
    Index("jobs_member", "member", "id"),
    Index("jobs_ended", "ended"),
)

destinations = Table(  # one row for each destination of a job
    "places",
    metadata,
    Column("job", String(26), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("role", String(16), primary_key=True),  # answer: reply to the request; notice: end; direct: DM; film1…
    Column("kind", String(16), nullable=False),
    Column("where", JSON, nullable=False),
    Column("message", String(32), nullable=False),  # the message's id, empty until it is known
    Column("delivered", Float),  # when the final result was delivered there
    Column("reason", Text, nullable=False),  # why it could not be delivered
    Index("places_undelivered", "kind", "delivered"),
    Index("places_message", "message"),
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
    Column("verdict", String(16), nullable=False, server_default="unchecked"),  # of the picture check
    Column("reviewed", String(16), nullable=False, server_default=""),  # by a moderator: shown or hidden
    Index("pictures_sha256", "sha256"),
)

amendments = Table(  # what was asked to change in a job while it runs
    "amendments",
    metadata,
    Column("job", String(26), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),  # rises within the job, also over refused ones
    Column("member", String(64), nullable=False),  # who asked; empty once they are forgotten
    Column("member_name", String(128), nullable=False),
    Column("at", Float, nullable=False),
    Column("key", String(128)),  # idempotency key of its request, which may have made several
    Column("state", String(16), nullable=False),  # waiting, made, refused
    Column("step", Integer),  # from which step on it holds, once it is made
    Column("reason", Text, nullable=False),  # why it was refused
    Column("change", JSON, nullable=False),
    Column("text", Text, nullable=False),  # the change on one line, for members
    Column("cost", Float, nullable=False),  # reserved for it while it waits
    Index("amendments_member", "member", "at"),
    _partial_index("amendments_waiting", ("job",), "state = 'waiting'"),
)

accounts = Table(  # the fair order: pool → tier → guild → user
    "accounts",
    metadata,
    Column("path", PATH_TYPE, primary_key=True),
    Column("parent", PATH_TYPE, nullable=False),
    Column("virtual", Float, nullable=False),  # cost ÷ weight consumed so far, compared among siblings
    Column("floor", Float, nullable=False),  # virtual time at which its children are being served
    Column("weight", Float, nullable=False),
    Column("queued", Integer, nullable=False),
    Column("active", Integer, nullable=False),
    Column("since", Float),  # member level only: since when the member waits for a turn, with any number of jobs
    _partial_index("accounts_order", ("parent", "virtual", "path"), "queued > 0"),
    _partial_index("accounts_since", ("since", "path"), "queued > 0 AND since IS NOT NULL"),
)

leader_terms = Table(  # leader terms: each new leader raises the number, and older leaders' writes are refused
    "terms",
    metadata,
    Column("name", String(16), primary_key=True),
    Column("term", BigInteger, nullable=False),
    Column("holder", String(64), nullable=False, server_default=""),
    Column("beat", BigInteger, nullable=False, server_default="0"),  # heartbeat counter of the holder
    Column("over", Boolean, nullable=False, server_default=false()),  # True: the holder ended its term at shutdown
    Column("store", String(26), nullable=False, server_default=""),  # the store's id, created with the first term
)

commit_log = Table(  # the last commit of each writer, PostgreSQL only: see `bot.store.drivers.postgresql`
    "commits",
    metadata,
    Column("writer", String(26), primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("at", Float, nullable=False),
)

audit_lines = Table(  # the audit: one row for each transition
    "moves",
    metadata,
    Column("id", ROW_NUMBER, primary_key=True, autoincrement=True),
    Column("job", String(26), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("at", Float, nullable=False),
    Column("source", String(16), nullable=False),
    Column("target", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("why", Text, nullable=False),
    Index("moves_job", "job", "id"),
)

models = Table(  # the last known profile of every model that a worker ever offered
    "models",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("warm", LargeBinary, nullable=False),
    Column("pool", String(64), nullable=False),
    Column("seen", Float, nullable=False),
)

rules = Table(  # guild "*" and scope "operator" hold the operator's rules
    "rules",
    metadata,
    Column("guild", String(64), primary_key=True),
    Column("scope", String(16), primary_key=True),  # operator, guild, channel, role, user
    Column("subject", String(64), primary_key=True),  # the channel's, role's or user's id; empty for a whole guild
    Column("setting", String(32), primary_key=True),
    Column("value", JSON, nullable=False),
    Index("rules_setting", "setting"),
)

rule_changes = Table(  # log of rule changes, with the data to undo them
    "changes",
    metadata,
    Column("id", ROW_NUMBER, primary_key=True, autoincrement=True),
    Column("guild", String(64), nullable=False),
    Column("at", Float, nullable=False),
    Column("actor", String(64), nullable=False),
    Column("actor_name", String(128), nullable=False),
    Column("what", String(32), nullable=False),
    Column("steps", JSON, nullable=False),  # [scope, subject, setting, value before, value after]; null: no rule
    Column("undoes", ROW_NUMBER),
    Index("changes_guild", "guild", "id"),
)

incidents = Table(  # events for moderators: refused words, blocks, reports, deletions, reviews
    "incidents",
    metadata,
    Column("id", ROW_NUMBER, primary_key=True, autoincrement=True),
    Column("guild", String(64), nullable=False),
    Column("at", Float, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("actor", String(64), nullable=False),
    Column("actor_name", String(128), nullable=False),
    Column("job", String(26), nullable=False),
    Column("said", Text, nullable=False),
    Column("closed", Float),
    Index("incidents_guild", "guild", "id"),
    Index("incidents_job", "job", "closed"),
    Index("incidents_actor", "actor", "kind", "at"),
)

favourites = Table(
    "favourites",
    metadata,
    Column("member", String(64), primary_key=True),
    Column("job", String(26), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("image", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Index("favourites_member", "member", "at"),
    Index("favourites_job", "job"),
)


deleted_jobs = Table(  # jobs that are or were removed; the job's own row may not exist any more
    "gone",
    metadata,
    Column("job", String(26), primary_key=True),
    Column("at", Float, nullable=False),
    Column("why", String(16), nullable=False),  # age, room, forgotten; enlarged: upscale of a forgotten job
    Index("gone_at", "at"),
    Index("gone_why", "why", "job"),
)

erasure_requests = Table(  # pending requests of members to be forgotten
    "departures",
    metadata,
    Column("member", String(64), primary_key=True),
    Column("guild", String(64), primary_key=True),  # empty: everywhere
    Column("asked", Float, nullable=False),  # newer data stays
)

archived_charges = Table(  # charges of removed jobs, while a limit counts them; hashes instead of ids
    "spent",
    metadata,
    Column("id", ROW_NUMBER, primary_key=True, autoincrement=True),
    Column("member", String(64), nullable=False),
    Column("guild", String(64), nullable=False),
    Column("channel", String(64), nullable=False),
    Column("at", Float, nullable=False),
    Column("charged", Float, nullable=False),
    Index("spent_member", "member", "at"),
    Index("spent_guild", "guild", "at"),
    Index("spent_at", "at"),
)

charge_keys = Table(  # the key of these hashes, while there are any
    "veil", metadata, Column("id", Integer, primary_key=True), Column("key", LargeBinary, nullable=False)
)


preferences = Table(
    "preferences", metadata, Column("member", String(64), primary_key=True), Column("values", JSON, nullable=False)
)

sessions = Table(  # of visitors to the chatroom
    "sessions",
    metadata,
    Column("hash", String(64), primary_key=True),  # SHA-256 of the cookie, which is stored nowhere
    Column("visitor", String(32), nullable=False),
    Column("kind", String(8), nullable=False),  # open: of an open room, by nobody's leave; guest; owner: the operator
    Column("issued", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("used", Float, nullable=False),  # within a minute
)

api_keys = Table(  # of programs
    "api_keys",
    metadata,
    Column("hash", String(64), primary_key=True),  # SHA-256 of the secret, which is stored nowhere
    Column("name", String(32), nullable=False),  # one valid key of a name at a time
    Column("scopes", JSON, nullable=False),
    Column("issued", Float, nullable=False),
    Column("expires", Float),  # null: never
    Column("used", Float),  # within a minute; null: never
    Column("revoked", Float),
    Index("api_keys_name", "name"),
)
