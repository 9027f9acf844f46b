-- The embedded log. One file; any number of processes on one machine.
CREATE TABLE IF NOT EXISTS topics (
    id         INTEGER PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    partitions INTEGER NOT NULL,
    topic_id   TEXT NOT NULL
);
-- The next offset of each partition.
CREATE TABLE IF NOT EXISTS heads (
    topic       INTEGER NOT NULL,
    partition   INTEGER NOT NULL,
    next_offset INTEGER NOT NULL,
    PRIMARY KEY (topic, partition)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (
    topic     INTEGER NOT NULL,
    partition INTEGER NOT NULL,
    offset    INTEGER NOT NULL,
    time_ms   INTEGER NOT NULL,
    key       BLOB,
    value     BLOB,
    headers   BLOB,
    PRIMARY KEY (topic, partition, offset)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS offsets (
    grp         TEXT NOT NULL,
    topic       INTEGER NOT NULL,
    partition   INTEGER NOT NULL,
    next_offset INTEGER NOT NULL,
    PRIMARY KEY (grp, topic, partition)
) WITHOUT ROWID;
-- Who is in a group, and when it was last heard of.
CREATE TABLE IF NOT EXISTS members (
    grp      TEXT NOT NULL,
    member   TEXT NOT NULL,
    seen_ms  INTEGER NOT NULL,
    PRIMARY KEY (grp, member)
) WITHOUT ROWID;
-- Who owns a partition for a group. A commit checks it in its own transaction.
CREATE TABLE IF NOT EXISTS leases (
    grp       TEXT NOT NULL,
    topic     INTEGER NOT NULL,
    partition INTEGER NOT NULL,
    member    TEXT NOT NULL,
    PRIMARY KEY (grp, topic, partition)
) WITHOUT ROWID;
