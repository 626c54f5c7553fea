"""The tables that hold states in PostgreSQL: their SQL, and whether they are ours.

The table that the user names has one row a version; beside it ``<table>_heads`` says which version of each state is the
current one, of which epoch and mark; ``<table>_requests`` remembers the request ids that were applied;
``<table>_current`` is a view of the current versions. docs/postgresql.md has every column.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

FORMAT = 1
STATES, EVENTS = "states", "events"  # what a table may hold
REQUESTS_KEPT = 1000
CHANNEL = "dgents"  # on which shared writes are announced
COLUMNS = ("key", "version", "epoch", "timestamp", "schema", "checksum", "state")


_ROW = 'key, version, epoch, "timestamp", schema, checksum, state, mark'


class Parts(NamedTuple):
    """What a batch of writes needs besides moving heads and adding one version each."""

    begins: bool  # states that were never written
    extras: bool  # several versions of one state
    trims: bool  # versions beyond the bound of the history
    requests: bool
    notifies: bool


class StatesTable:
    """The statements for the states in one table, or for the events of streams, which are versions of them."""

    def __init__(self, schema: str, name: str, kind: str = STATES) -> None:
        self.kind = kind
        self.schema = schema
        self.name = name
        self.registry = f'"{schema}".dgents_tables'
        self.rows, self.heads, self.requests, self.current = (
            f'"{schema}"."{name}{suffix}"' for suffix in ("", "_heads", "_requests", "_current")
        )
        self.objects = tuple(f"{name}{suffix}" for suffix in ("", "_heads", "_requests", "_current"))
        if kind == EVENTS:
            self.objects = (*self.objects, f"{name}_snapshots")
        self.kept = [each for each in self.objects if each != f"{name}_current"]  # what holds data
        columns = ", ".join(f"r.{column}" for column in COLUMNS)
        # A join finds one row of an index for each key; see `postgres_session.WRITER`.
        left = f"""EXISTS (SELECT FROM {self.rows} AS o WHERE o.key = k.key)
            OR EXISTS (SELECT FROM {self.requests} AS o WHERE o.key = k.key)"""
        # A join finds one row of an index for each key; see `postgres_session.WRITER`. What is there without a head is
        # what somebody left behind who deleted that, or restored only the rest.
        self.look = f"""SELECT h.version, h.epoch, h.oldest, h.requests, h.mark, {columns},
            CASE WHEN h.version > 0 THEN false ELSE {left} END
            FROM unnest(%(keys)b) WITH ORDINALITY AS k(key, n) LEFT JOIN {self.heads} AS h USING (key)
            LEFT JOIN {self.rows} AS r ON r.key = h.key AND r.version = h.version ORDER BY k.n"""
        # The newest epoch wins: who claimed before has a mark that is not there any more.
        self.claim = f"""INSERT INTO {self.heads} AS h (key, version, epoch, oldest, requests, mark)
            SELECT key, 0, 1, 1, 0, mark FROM unnest(%(keys)b, %(marks)b) AS k(key, mark)
            WHERE EXISTS (SELECT FROM {self.heads} AS o WHERE o.key = k.key) OR NOT ({left})
            ON CONFLICT (key) DO UPDATE SET epoch = h.epoch + 1, mark = excluded.mark RETURNING key, epoch"""
        self.settle = f"""UPDATE {self.heads} SET mark = %(new)s WHERE key = %(key)s AND mark = %(mark)s"""
        self.settle_absent = f"""INSERT INTO {self.heads} (key, version, epoch, oldest, requests, mark)
            SELECT key, 0, 1, 1, 0, %(new)s FROM (SELECT %(key)s::text AS key) AS k WHERE NOT ({left})
            ON CONFLICT DO NOTHING"""
        self.mark_of = f"SELECT mark FROM {self.rows} WHERE key = %(key)s AND version = %(version)s"
        one = f"(SELECT %(key)s::text AS key) AS k LEFT JOIN {self.heads} AS h USING (key)"
        self.history = f"""SELECT coalesce(h.version, 0), coalesce(h.oldest, 1), {columns} FROM {one}
            LEFT JOIN {self.rows} AS r ON r.key = k.key AND r.version > coalesce(h.version, 0) - %(limit)s
            ORDER BY r.version"""
        self.read_requests = f"""SELECT coalesce(h.requests, 0), q.number, q.id, q.version, q.checksum, q.result
            FROM {one} LEFT JOIN {self.requests} AS q
            ON q.key = k.key AND q.number > coalesce(h.requests, 0) - {REQUESTS_KEPT} ORDER BY q.number"""
        self.keys = " UNION ".join(f"SELECT key FROM {each}" for each in (self.rows, self.heads, self.requests))
        self.keys += " ORDER BY key"
        self.summary = f"""SELECT key, version, r.epoch, r."timestamp", length(r.state),
            (SELECT count(*) FROM {self.rows} AS kept WHERE kept.key = h.key)
            FROM {self.heads} AS h JOIN {self.rows} AS r USING (key, version) ORDER BY key"""
        self.schemas = f"SELECT lowest_schema, highest_schema FROM {self.registry} WHERE name = %(name)s"
        self.add_schema = f"""UPDATE {self.registry} SET lowest_schema = least(lowest_schema, %(schema)s),
            highest_schema = greatest(highest_schema, %(schema)s) WHERE name = %(name)s
            AND (lowest_schema IS NULL OR %(schema)s NOT BETWEEN lowest_schema AND highest_schema)"""
        self.registered = f"SELECT kind, format FROM {self.registry} WHERE name = %(name)s"

    @property
    def ddl(self) -> tuple[str, ...]:
        """The statements that make the tables, and note that they are ours."""
        # "C" compares bytes: in the order of any other collation an index breaks when the system's rules change.
        key = 'key text COLLATE "C" NOT NULL'
        snapshots = f"""CREATE TABLE "{self.schema}"."{self.name}_snapshots" (
    {key}, kind text NOT NULL, version bigint NOT NULL, checksum bigint NOT NULL, content bytea NOT NULL,
    PRIMARY KEY (key, kind))"""
        return (
            *((snapshots,) if self.kind == EVENTS else ()),
            f"""CREATE TABLE IF NOT EXISTS {self.registry} (
    name text PRIMARY KEY, kind text NOT NULL, format bigint NOT NULL, lowest_schema bigint, highest_schema bigint)""",
            f"""CREATE TABLE {self.rows} (
    {key}, version bigint NOT NULL, epoch bigint NOT NULL, "timestamp" double precision NOT NULL,
    schema bigint NOT NULL, checksum bigint NOT NULL, state bytea, mark bigint NOT NULL, PRIMARY KEY (key, version))""",
            # Room in each page, so that a head moves within it and no index changes.
            f"""CREATE TABLE {self.heads} (
    {key} PRIMARY KEY, version bigint NOT NULL, epoch bigint NOT NULL, oldest bigint NOT NULL,
    requests bigint NOT NULL, mark bigint NOT NULL) WITH (fillfactor = 60)""",
            f"""CREATE TABLE {self.requests} (
    {key}, number bigint NOT NULL, id bytea NOT NULL, version bigint NOT NULL, checksum bigint NOT NULL,
    result bytea, PRIMARY KEY (key, number))""",
            f"""CREATE VIEW {self.current} AS
    SELECT r.* FROM {self.heads} AS h JOIN {self.rows} AS r USING (key, version) WHERE r.state IS NOT NULL""",
            f"""INSERT INTO {self.registry} VALUES ('{self.name}', '{self.kind}', {FORMAT}, NULL, NULL)
    ON CONFLICT (name) DO UPDATE SET kind = excluded.kind, format = excluded.format""",
        )


@lru_cache(maxsize=256)
def commit_statement(table: StatesTable, parts: Parts) -> str:
    """Return the one statement that stores a batch of writes and answers with the keys that it refused.

    A head that still has the mark which its writer knew moves; only then the rows of that write are added and removed.
    All rows are known before (the writer knows the head), so that nothing is joined but by an index.
    """
    rows, heads, requests = table.rows, table.heads, table.requests
    accepted = "IN (SELECT key FROM accepted)) IS TRUE"  # in this form a hash of the keys, not a join
    # An event is not stored behind one that is missing.
    newest = f"SELECT FROM {rows} AS r WHERE r.key = h.key AND r.version = h.version"
    whole = f"AND (h.version = 0 OR EXISTS ({newest}))" if table.kind == EVENTS else ""
    steps = {
        "w": """SELECT * FROM unnest(%(key)b, %(mark)b, %(new)b, %(version)b, %(head_epoch)b, %(epoch)b, %(lowest)b,
            %(oldest)b, %(requests)b, %(timestamp)b, %(schema)b, %(checksum)b, %(state)b) AS w(key, mark, new, version,
            head_epoch, epoch, lowest, oldest, requests, "timestamp", schema, checksum, state)""",
        "moved": f"""UPDATE {heads} AS h SET version = w.version, oldest = w.oldest, requests = w.requests,
            mark = w.new FROM w WHERE h.key = w.key AND h.mark = w.mark {whole} RETURNING h.key""",
        "begun": f"""INSERT INTO {heads} (key, version, epoch, oldest, requests, mark)
            SELECT key, version, head_epoch, oldest, requests, new FROM w WHERE mark = 0
            ON CONFLICT DO NOTHING RETURNING key""",
        "accepted": "SELECT key FROM moved" + (" UNION ALL SELECT key FROM begun" if parts.begins else ""),
        "stored": f"""INSERT INTO {rows} ({_ROW}) SELECT key, version, epoch, "timestamp", schema, checksum, state, new
            FROM w WHERE (key {accepted}""",
        "extra": f"""INSERT INTO {rows} ({_ROW}) SELECT * FROM unnest(%(x_key)b, %(x_version)b, %(x_epoch)b,
            %(x_timestamp)b, %(x_schema)b, %(x_checksum)b, %(x_state)b, %(x_mark)b) AS x(key) WHERE (key {accepted}""",
        "trimmed": f"""DELETE FROM {rows} AS r USING w WHERE w.lowest < w.oldest AND r.key = w.key
            AND r.version >= w.lowest AND r.version < w.oldest AND (w.key {accepted}""",
        "remembered": f"""INSERT INTO {requests} (key, number, id, version, checksum, result)
            SELECT * FROM unnest(%(q_key)b, %(q_number)b, %(q_id)b, %(q_version)b, %(q_checksum)b, %(q_result)b)
            AS q(key) WHERE (key {accepted}""",
        "forgotten": f"""DELETE FROM {requests} AS q USING w WHERE w.requests > {REQUESTS_KEPT} AND q.key = w.key
            AND q.number <= w.requests - {REQUESTS_KEPT} AND (w.key {accepted}""",
    }
    left_out = {
        "begun": not parts.begins,
        "extra": not parts.extras,
        "trimmed": not parts.trims,
        "remembered": not parts.requests,
        "forgotten": not parts.requests,
    }
    chosen = [f"{name} AS ({sql})" for name, sql in steps.items() if not left_out.get(name)]
    answer = "SELECT key FROM w WHERE (key IN (SELECT key FROM accepted)) IS NOT TRUE"
    if parts.notifies:
        answer += f" UNION ALL SELECT n FROM unnest(%(notices)b) AS n WHERE pg_notify('{CHANNEL}', n) IS NULL"
    return f"WITH {', '.join(chosen)} {answer}"
