"""Messages, spans and moves of offsets; the views group_users and msg_acks."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NAME = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
UTC_TIME = sa.Text().with_variant(postgresql.TIMESTAMP(timezone=True, precision=3), "postgresql")


def upgrade() -> None:
    """Create everything."""
    _create_messages()
    _create_spans()
    op.create_table(
        "offset_moves",
        sa.Column("msgid", sa.BigInteger),
        sa.Column("entry", sa.BigInteger),
        sa.Column("start", sa.BigInteger),
        sa.Column("reach", sa.SmallInteger),
        sa.Column("gid", NAME),
        sa.Column("uids", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("gid", "reach", "msgid", "entry", "start"),
        sqlite_with_rowid=False,
    )
    if op.get_bind().dialect.name == "postgresql":
        op.create_index("ix_offset_moves_entry", "offset_moves", ["entry"], postgresql_using="brin")
    op.create_table(
        "chat_groups",
        sa.Column("gid", NAME, primary_key=True),
        sa.Column("created_at", UTC_TIME, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "imcore_meta",
        sa.Column("name", NAME, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    _create_views()


def downgrade() -> None:
    """Drop everything."""
    for view in ("msg_acks", "group_users"):
        op.execute(f"DROP VIEW {view}")
    for table in ("imcore_meta", "chat_groups", "offset_moves", "group_spans", "group_msgs"):
        op.drop_table(table)


def _create_messages() -> None:
    op.create_table(
        "group_msgs",
        sa.Column("msgid", sa.BigInteger),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("span", sa.BigInteger),
        sa.Column("time", UTC_TIME, nullable=False),
        sa.Column("sent_at", UTC_TIME),
        sa.Column("recalls", sa.BigInteger),
        sa.Column("confirmed_read", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("gid", NAME),
        sa.Column("sender_uid", NAME, nullable=False),
        sa.Column("client_msgid", NAME),
        sa.Column("content", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("gid", "msgid"),
    )
    recalls = sa.text("recalls IS NOT NULL")
    op.create_index(
        "ix_group_msgs_recalls", "group_msgs", ["gid", "recalls"], sqlite_where=recalls, postgresql_where=recalls
    )
    op.create_index("ix_group_msgs_sender", "group_msgs", ["sender_uid"])
    where = sa.text("client_msgid IS NOT NULL")
    if op.get_bind().dialect.name == "postgresql":
        hashed = sa.text("hashtextextended(gid || client_msgid, 0)")
        op.create_index("ix_group_msgs_client_hash", "group_msgs", [hashed], postgresql_where=where)
    else:
        op.create_index("ix_group_msgs_client", "group_msgs", ["gid", "client_msgid"], sqlite_where=where)


def _create_spans() -> None:
    op.create_table(
        "group_spans",
        sa.Column("gid", NAME, primary_key=True),
        sa.Column("uid", NAME, primary_key=True),
        sa.Column("joined_msgid", sa.BigInteger, primary_key=True),
        sa.Column("left_msgid", sa.BigInteger),
        sa.Column("changed", sa.BigInteger, nullable=False),
        sa.Column("acked_msgid", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
        postgresql_with={"fillfactor": 70},
    )
    op.create_index("ix_group_spans_uid", "group_spans", ["uid"])


def _create_views() -> None:
    op.execute(
        """
        CREATE VIEW group_users AS
        SELECT gid, uid, NULLIF(acked_msgid, 0) AS last_ack_msgid, joined_msgid
        FROM group_spans
        WHERE left_msgid IS NULL
        """
    )
    # The + keeps SQLite from looking up messages by it: for the messages of one sender in one group it would otherwise
    # read every message of the group once for each member. PostgreSQL counts rows, and plans well without.
    msgid = "m.msgid" if op.get_bind().dialect.name == "postgresql" else "+m.msgid"
    op.execute(
        f"""
        CREATE VIEW msg_acks AS
        SELECT m.sender_uid, m.msgid, s.uid AS recv_uid, m.gid, s.acked_msgid >= m.msgid AS if_ack
        FROM group_msgs m
        JOIN group_spans s
          ON s.gid = m.gid
         AND s.joined_msgid < {msgid}
         AND (s.left_msgid IS NULL OR m.msgid <= s.left_msgid)
         AND s.uid <> m.sender_uid
        """  # noqa: S608 (nothing from outside)
    )
