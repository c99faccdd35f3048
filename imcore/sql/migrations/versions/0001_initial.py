"""Messages, spans, bookmarks, offset moves, groups, deletions, erasures, users, facts; group_users and msg_acks."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_SQLITE = {
    "name": "TEXT",
    "time": "TEXT",
    "options": "WITHOUT ROWID",
    "span_options": "WITHOUT ROWID",
    "moves_index": "",
    "client_index": "ix_group_msgs_client ON group_msgs (gid, client_msgid)",
    # The + keeps SQLite from the index on msgid: for the messages of one sender in one group it would otherwise read
    # every message of the group once for each member. PostgreSQL counts rows, and plans well without.
    "m_msgid": "+m.msgid",
}
_POSTGRES = {
    "name": 'TEXT COLLATE "C"',
    "time": "TIMESTAMP(3) WITH TIME ZONE",
    "options": "",
    "span_options": "WITH (fillfactor = 70)",
    "moves_index": "CREATE INDEX ix_offset_moves_entry ON offset_moves USING brin (entry)",
    "client_index": "ix_group_msgs_client_hash ON group_msgs (hashtextextended(gid || client_msgid, 0))",
    "m_msgid": "m.msgid",
}
_STATEMENTS = """
    CREATE TABLE group_msgs (
        msgid BIGINT NOT NULL, seq BIGINT NOT NULL, span BIGINT, time {time} NOT NULL, sent_at {time}, recalls BIGINT,
        confirmed_read INTEGER DEFAULT 0 NOT NULL, confirmed_delivered INTEGER DEFAULT 0 NOT NULL,
        gid {name} NOT NULL, sender_uid {name} NOT NULL, client_msgid {name},
        meta TEXT, content TEXT NOT NULL, PRIMARY KEY (gid, msgid));
    CREATE INDEX ix_group_msgs_recalls ON group_msgs (gid, recalls) WHERE recalls IS NOT NULL;
    CREATE INDEX ix_group_msgs_sender ON group_msgs (sender_uid);
    CREATE INDEX {client_index} WHERE client_msgid IS NOT NULL;
    CREATE TABLE group_spans (
        gid {name} NOT NULL, uid {name} NOT NULL, joined_msgid BIGINT NOT NULL, left_msgid BIGINT,
        changed BIGINT NOT NULL, acked_msgid BIGINT NOT NULL, delivered_msgid BIGINT,
        PRIMARY KEY (gid, uid, joined_msgid)) {span_options};
    CREATE INDEX ix_group_spans_uid ON group_spans (uid);
    CREATE TABLE bookmarks (
        gid {name} NOT NULL, uid {name} NOT NULL, joined_msgid BIGINT NOT NULL, private_msgid BIGINT NOT NULL,
        mark_msgid BIGINT NOT NULL, changed BIGINT NOT NULL, PRIMARY KEY (gid, uid)) {options};
    CREATE TABLE offset_moves (
        msgid BIGINT NOT NULL, entry BIGINT NOT NULL, start BIGINT NOT NULL, reach SMALLINT NOT NULL,
        gid {name} NOT NULL, uids TEXT NOT NULL, PRIMARY KEY (gid, reach, msgid, entry, start)) {options};
    {moves_index};
    CREATE TABLE chat_groups (
        gid {name} NOT NULL, created_at {time} NOT NULL, receipts TEXT DEFAULT 'names' NOT NULL,
        asked_by TEXT DEFAULT 'sender' NOT NULL, policy_changed BIGINT DEFAULT 0 NOT NULL, PRIMARY KEY (gid)) {options};
    CREATE TABLE deleted_groups (
        gid {name} NOT NULL, entry BIGINT NOT NULL, is_done BOOLEAN NOT NULL, PRIMARY KEY (gid)) {options};
    CREATE TABLE user_settings (
        uid {name} NOT NULL, receipts TEXT NOT NULL, changed BIGINT NOT NULL, PRIMARY KEY (uid)) {options};
    CREATE TABLE erasures (
        uid {name} NOT NULL, gid {name} NOT NULL, alias {name} NOT NULL, PRIMARY KEY (uid, gid)) {options};
    CREATE TABLE imcore_meta (name {name} NOT NULL, value TEXT NOT NULL, PRIMARY KEY (name)) {options};
    CREATE VIEW group_users AS
        SELECT gid, uid, NULLIF(acked_msgid, 0) AS last_ack_msgid,
               NULLIF(COALESCE(delivered_msgid, acked_msgid), 0) AS last_delivered_msgid, joined_msgid
        FROM group_spans
        WHERE left_msgid IS NULL;
    CREATE VIEW msg_acks AS
        SELECT m.sender_uid, m.msgid, s.uid AS recv_uid, m.gid, s.acked_msgid >= m.msgid AS if_ack,
               COALESCE(s.delivered_msgid, s.acked_msgid) >= m.msgid AS if_delivered
        FROM group_msgs m
        JOIN group_spans s
          ON s.gid = m.gid
         AND s.joined_msgid < {m_msgid}
         AND (s.left_msgid IS NULL OR m.msgid <= s.left_msgid)
         AND s.uid <> m.sender_uid
"""


def upgrade() -> None:
    words = _POSTGRES if op.get_bind().dialect.name == "postgresql" else _SQLITE
    for statement in _STATEMENTS.format(**words).split(";"):
        if statement.strip():
            op.execute(statement)


def downgrade() -> None:
    for view in ("msg_acks", "group_users"):
        op.execute(f"DROP VIEW {view}")
    tables = ("imcore_meta", "erasures", "deleted_groups", "user_settings", "chat_groups", "offset_moves", "bookmarks")
    for table in (*tables, "group_spans", "group_msgs"):
        op.drop_table(table)
