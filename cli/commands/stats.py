"""Figures of the whole system."""

from dataclasses import asdict
from typing import Any

import click

from imcore.cli import output
from imcore.cli.options import Invocation, command

_COLUMNS = ("groups", "members", "messages", "online", "journal", "dead_letters")
_WORKER_COLUMNS = ("worker", "backlog", "pending", "lag_ms")
_SILENT_COLUMNS = ("worker", "process", "entries", "silent_ms")
_JOB_COLUMNS = ("queued", "running", "failed")
_STREAM_COLUMNS = ("kind", "streams", "entries", "bytes")
_ONLINE_COLUMNS = ("online",)
_SERVER_COLUMNS = (
    *("holds", "server", "version", "role"),
    *("maxmemory", "maxmemory_policy", "appendonly", "appendfsync"),
)
_NOT_KNOWN = "not known"
_STORM_COLUMNS = ("acks", "receipts", "digests", "receipts_per_digest", "messages_per_s", "acks_per_s")


@command("stats", example="im stats\nim stats --json | jq .workers\nim stats --online")
@click.option("--online", is_flag=True, help="Name those who are online, too.")
def stats(run: Invocation, online: bool) -> None:
    """Show streams, backlogs, dead letters and who is online.

    A worker's backlog is what it has not done yet, its lag the age of the oldest of that; pending is what a process
    has in hand. A process that has entries in hand and is heard of no more has a line of its own. Jobs are shown where
    their Redis answers. Bytes are an estimate. Of the storm of receipts: so many acks stood for so many receipts (one
    recipient, one message), told to senders in so many digests, as far as the worker `receipts` has come; messages and
    acks a second are those of the last 10. Of each Redis server its settings are shown, and which of them break a
    promise; what this user may not ask for is not known, and why a server is missing there is said on stderr.
    """
    from imcore.admin import stats as admin  # noqa: PLC0415 (the help need not wait for the drivers)

    with run.chat() as chat:
        record = asdict(admin.stats(chat.system))
        if online:
            record["online_uids"] = list(admin.online_uids(chat.system))
    run.show([record], _COLUMNS)
    if not run.json:
        _show_rest(run, record)
    if record["unseen"]:
        output.remark(*record["unseen"])
    if record["rebuild"]:
        output.complain(f"a rebuild of Redis is {record['rebuild']}: nothing is stored until it has ended")


def _show_rest(run: Invocation, record: dict[str, Any]) -> None:
    jobs = [record["jobs"]] if record["jobs"] else []
    tables = [
        (record["workers"], _WORKER_COLUMNS),
        (record["silent"], _SILENT_COLUMNS),
        (jobs, _JOB_COLUMNS),
        (record["streams"], _STREAM_COLUMNS),
        ([record["storm"]], _STORM_COLUMNS),
        (_with_unknown(record["servers"]), _SERVER_COLUMNS),
        (_warnings(record["servers"]), ("server", "warning")),
        ([{"online": uid} for uid in record.get("online_uids", ())], _ONLINE_COLUMNS),
    ]
    always = {_WORKER_COLUMNS, *([_ONLINE_COLUMNS] if "online_uids" in record else [])}
    for rows, columns in tables:
        if rows or columns in always:
            output.say("")
            run.show(rows, columns)


def _warnings(servers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"server": server["server"], "warning": text} for server in servers for text in server["warnings"]]


def _with_unknown(servers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: _NOT_KNOWN if value is None else value for name, value in server.items()} for server in servers]
