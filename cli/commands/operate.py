"""The commands of operators: figures, dead letters, comparison and repair, retention, access rules, and upgrades."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import click

from imcore.admin.acl import ROLES
from imcore.cli import names, output
from imcore.cli.app import CommandGroup, Invocation, NumberRange, command, confirm, yes_option
from imcore.cli.catalogue import COMMANDS
from imcore.cli.progress import progress
from imcore.cli.records import NAMES
from imcore.errors import ImError, RedisUnavailable
from imcore.model.records import Record
from imcore.settings import MOST_DAYS_KEPT, MOST_MESSAGES_KEPT
from imcore.util.garbage import collected_rarely

if TYPE_CHECKING:
    from imcore.repair.diff import Difference

_STATS_COLUMNS = ("groups", "members", "messages", "online", "journal", "dead_letters")
_WORKER_COLUMNS = ("worker", "backlog", "pending", "lag_ms")
_ONLINE_COLUMNS = ("online",)
_SERVER_COLUMNS = (
    *("holds", "server", "version", "role"),
    *("maxmemory", "maxmemory_policy", "appendonly", "appendfsync"),
)
_DEAD_COLUMNS = ("id", "time", "worker", "deliveries", "reason")
_DIFFERENCE_COLUMNS = ("gid", "what", "redis", "sql")
_TRIM_COLUMNS = ("groups", "entries", "journal_entries", "read_times", "rewritten")


@command("stats", example="im stats\nim stats --json | jq .workers\nim stats --online")
@click.option("--online", is_flag=True, help="Name those who are online, too.")
def stats(run: Invocation, online: bool) -> None:
    """A worker's backlog is what it has not done yet, its lag the age of the oldest entry of that; pending is what its
    processes have in hand. A silent process with entries in hand has a line of its own. Jobs are shown if their Redis
    answers. Bytes are an estimate. Coalescing: how many acks made how many receipts (one recipient, one message), and
    in how many digests senders got them, as far as the worker `receipts` has come; messages and acks a second are
    those of the last 10. Each Redis server is shown with its settings, and with those that break a promise; settings
    that this user may not read are `not known`, and stderr says why a server is missing.
    """
    from imcore.admin import stats as admin  # noqa: PLC0415 (the help need not wait for the drivers)
    from imcore.streams.consumers import missing_kinds  # noqa: PLC0415

    with closing(run.connect()) as system:
        record = asdict(admin.stats(system))
        missing = () if run.json else missing_kinds(system.client)
        if online:
            record["online_uids"] = list(admin.online_uids(system))
    run.show([record], _STATS_COLUMNS)
    if not run.json:
        _show_rest(run, record)
    if missing:
        output.remark(f"no worker {' and no worker '.join(missing)} runs: see im health")
    if record["unseen"]:
        output.remark(*record["unseen"])
    if record["rebuild"]:
        output.complain(f"a rebuild of Redis is {record['rebuild']}: nothing is stored until it has ended")


def _show_rest(run: Invocation, record: dict[str, Any]) -> None:
    servers = record["servers"]
    warnings = [{"server": server["server"], "warning": text} for server in servers for text in server["warnings"]]
    tables: list[tuple[Iterable[dict[str, Any]], tuple[str, ...]]] = [
        (record["workers"], _WORKER_COLUMNS),
        (record["silent"], ("worker", "process", "entries", "silent_ms")),
        ([record["jobs"]] if record["jobs"] else [], ("queued", "running", "failed")),
        (record["streams"], ("kind", "streams", "entries", "bytes")),
        ([record["storm"]], tuple(record["storm"])),
        (list(map(_with_unknown, servers)), _SERVER_COLUMNS),
        (warnings, ("server", "warning")),
        ([{"online": uid} for uid in record.get("online_uids", ())], _ONLINE_COLUMNS),
    ]
    always = {_WORKER_COLUMNS, *[_ONLINE_COLUMNS] * ("online_uids" in record)}
    for rows, columns in tables:
        if rows or columns in always:
            output.say("")
            run.show(rows, columns)


def _with_unknown(server: dict[str, Any]) -> dict[str, Any]:
    return {key: "not known" if value is None else value for key, value in server.items()}


@command("check", example="im check && echo they agree\nim check --repair")
@click.option("--repair", is_flag=True, help="Mend what can be mended, and say of each difference whether it was.")
def check(run: Invocation, repair: bool) -> None:
    """Every count is computed anew. Each difference is a line; the exit code is 0 without any, or if all were mended.
    Entries that a running worker `persist` is about to store are no difference. stderr names what changes too fast to
    be compared, and settings of the Redis server that break a promise.
    """
    from imcore.admin import server_settings  # noqa: PLC0415 (the help need not wait for the drivers)
    from imcore.repair.check import check as differences_of  # noqa: PLC0415

    counts: Counter[str] = Counter()
    with closing(run.connect()) as system, progress("groups") as shown, collected_rarely():
        differences = differences_of(system, repair=repair, on_progress=shown)
        columns = (*_DIFFERENCE_COLUMNS, *["repaired"] * repair)
        records = ({key: getattr(each, key) for key in columns} for each in _counted(differences, counts))
        run.show(output.handed_over(records) if repair else records, columns)
        if warning := server_settings.warning_of(
            server_settings.all_servers(system.client, system.settings, output.remark)
        ):
            output.complain(warning)
    if counts.total():
        output.complain(
            f"differences between Redis and SQL: {counts.total()}" + f", {counts['repaired']} mended" * repair
        )
    elif not run.json:
        output.remark("no difference")
    if counts["left"]:
        click.get_current_context().exit(output.FAILED)


def _counted(differences: Iterable["Difference"], counts: Counter[str]) -> Iterator["Difference"]:
    """Count and yield the differences; one that may be none is only reported."""
    for each in differences:
        if each.unsure:
            output.complain(
                f"cannot be decided while it changes: {each.what} of {each.gid!r}: {each.redis}, in SQL {each.sql}"
            )
        else:
            counts["repaired" if each.repaired else "left"] += 1
            yield each


@command("trim", example="im trim\nim trim --keep-messages 1000")
@click.option(
    "--keep-messages",
    type=click.IntRange(min=0, max=MOST_MESSAGES_KEPT),
    metavar="N",
    help="Keep the newest N messages of each group. [IM_KEEP_MESSAGES; default: 10000]",
)
@click.option(
    "--keep-days",
    type=NumberRange(min=0, max=MOST_DAYS_KEPT),
    metavar="D",
    help="Of these, keep what is younger than D days. [IM_KEEP_MS; default: 30 days]",
)
def trim(run: Invocation, keep_messages: int | None, keep_days: float | None) -> None:
    """Nothing gets lost: messages that Redis has dropped are read from SQL. Journal entries that every kind of worker
    has handled are dropped, too, and so are read times that are older than IM_KEEP_READ_TIMES_MS, if that is set. Then
    each Redis rewrites its append-only file, so that dropped texts are on no disk any more; this waits for it.

    Nobody sees a recalled text, and SQL does not have it any more. The worker `persist` rewrites the streams that still
    have some within a minute; this rewrites them now, so that the new file has none. If any stay, as another process
    has their groups, stderr says so.
    """
    from imcore.admin import append_only, retention  # noqa: PLC0415 (the help need not wait for the drivers)
    from imcore.repair import rewriting  # noqa: PLC0415

    keep_ms = None if keep_days is None else round(keep_days * 24 * 60 * 60 * 1000)
    with closing(run.connect()) as system:
        rewriting.rewrite_all(system.client)
        summary = retention.trim(system, keep_messages=keep_messages, keep_ms=keep_ms)
        why_not = None if summary.journal_entries else retention.held_up(system)
        with progress("servers") as shown:
            rewritten = append_only.forget_withdrawn(system, always=True, on_progress=shown)
        recalled = append_only.count_kept(system)
    run.show([asdict(summary) | {"rewritten": rewritten}], _TRIM_COLUMNS)
    if why_not:
        output.complain(why_not)
    if recalled and not run.json:
        texts = "text stays" if recalled == 1 else "texts stay"
        output.remark(f"{recalled} recalled {texts} in Redis until the worker persist rewrites the stream")


@command("rebuild", example="im rebuild\nim rebuild --yes")
@click.option("--adopt", is_flag=True, help="Merge groups that Redis got after this system had lost it, too.")
@yes_option
def rebuild(run: Invocation, yes: bool, adopt: bool) -> None:
    """For a Redis that has lost its data. What the worker `persist` had not stored yet is not in SQL, and stays lost;
    groups that Redis has are merged. Interrupted, it can be started again.
    """
    from imcore.repair import rebuild as admin  # noqa: PLC0415 (the help need not wait for the drivers)

    with closing(run.connect()) as system:
        before = admin.look_before(system)
        confirm(
            f"Rebuild Redis at {system.client.address}, which holds {before.redis_groups} groups, from the "
            f"{before.sql_groups} groups of {system.database.address}?",
            yes=yes,
        )
        with progress("groups") as shown, collected_rarely():
            shown(0, before.sql_groups)
            summary = admin.rebuild(
                system,
                yes=True,
                adopt=adopt,
                on_progress=lambda done: shown(done.groups + done.merged + done.done_before, before.sql_groups),
            )
    run.show([asdict(summary)], tuple(asdict(summary)))


@command("acl", example="im acl\nim acl gateway reader --aclfile")
@click.argument("roles", metavar="[worker] [gateway] [reader]", nargs=-1, type=click.Choice(list(ROLES)))
@click.option("--aclfile", is_flag=True, help="As lines of the server's aclfile, not as commands.")
def acl(run: Invocation, roles: tuple[str, ...], aclfile: bool) -> None:
    """Each gives the least rights. Put the SHA-256 of a password (printf %s PASSWORD | sha256sum) where the line says
    so: the server refuses the line without it. This command connects to no server.
    """
    for role in dict.fromkeys(roles or ROLES):
        rules = ROLES[role]
        if run.json:
            run.show([{"role": role, "user": rules.user, "rules": list(rules.rules)}], ())
        else:
            output.say(rules.file_line() if aclfile else rules.set_user())


db = CommandGroup("db", help=COMMANDS["db"][1], example="im db upgrade")


@command("upgrade", of=db, example="im db upgrade --database-url postgresql:///chat")
def upgrade(run: Invocation) -> None:
    """Make the tables, or change them to what this version of the program needs.

    The functions in Redis are loaded, or replaced by those of this version. Where Redis cannot be reached that is left
    to the workers, who do it when they start.
    """
    with closing(run.connect()) as system:
        # First: without the right to write there, change nothing.
        is_there = _done_at_redis(system.client.require_writes)
        system.database.upgrade()
        upgraded = {
            "database": system.database.address,
            "redis": system.client.address if is_there and _done_at_redis(system.client.upgrade) else None,
            "status": "up to date",
        }
    run.show([upgraded], tuple(upgraded))


def _done_at_redis(action: Callable[[], None]) -> bool:
    """Do an action at Redis. Return False, with a line on stderr, if it cannot be reached."""
    try:
        action()
    except RedisUnavailable as error:
        output.complain(f"the functions in Redis are as they were: {error}")
        return False
    return True


dead = CommandGroup("dead", help=COMMANDS["dead"][1], example="im dead list\nim dead requeue 3:1767225600000-0")


@command("list", of=dead, example="im dead list\nim dead list --json | jq -r .id | xargs -r im dead requeue")
def list_(run: Invocation) -> None:
    """List all dead letters."""
    from imcore.streams import dead_letters  # noqa: PLC0415 (the help need not wait for the drivers)

    with closing(run.connect()) as system:
        run.show(map(asdict, dead_letters.list_dead(system.client)), _DEAD_COLUMNS)


@command("show", of=dead, example="im dead show 3:1767225600000-0")
@click.argument("dead_id", metavar="ID")
def show(run: Invocation, dead_id: str) -> None:
    """Show one dead letter, with what the entry said."""
    from imcore.streams import dead_letters  # noqa: PLC0415

    with closing(run.connect()) as system:
        letter = dead_letters.show(system.client, dead_id)
    run.show([asdict(letter)], _DEAD_COLUMNS)
    if not run.json:
        output.say("")
        run.show(
            [{"field": name, "value": _readable(name, value)} for name, value in letter.fields.items()],
            ("field", "value"),
        )


@command("requeue", of=dead, example="im dead requeue 3:1767225600000-0")
@click.argument("dead_ids", metavar="ID...", nargs=-1, required=True)
def requeue(run: Invocation, dead_ids: tuple[str, ...]) -> None:
    """Put dead letters back into the journal, each for the kind of worker that failed."""
    from imcore.streams import dead_letters  # noqa: PLC0415

    with closing(run.connect()) as system:
        _each(run, dead_ids, lambda dead_id: dead_letters.requeue(system.client, dead_id), "requeued")


@command("drop", of=dead, example="im dead drop 3:1767225600000-0 --yes")
@click.argument("dead_ids", metavar="ID...", nargs=-1, required=True)
@yes_option
def drop(run: Invocation, dead_ids: tuple[str, ...], yes: bool) -> None:
    """Forget dead letters: what they tell of is never handled."""
    from imcore.streams import dead_letters  # noqa: PLC0415

    confirm(f"Drop {', '.join(dead_ids)}? What they tell of is never handled.", yes=yes)
    with closing(run.connect()) as system:
        _each(run, dead_ids, lambda dead_id: dead_letters.drop(system.client, dead_id), "dropped")


def _each(run: Invocation, dead_ids: Sequence[str], action: Callable[[str], None], name: str) -> None:
    """Apply an action to each dead letter, and show those that are done. The first failure ends it."""
    done: list[str] = []
    failures: list[BaseException] = []

    def records() -> Iterator[Record]:
        for dead_id in dead_ids:
            try:
                action(dead_id)
            except (ImError, KeyboardInterrupt) as error:
                failures.append(error)
                return
            done.append(dead_id)
            yield {"id": dead_id, name: True}

    rows = records()
    try:
        if first := list(islice(rows, 1)):
            run.show(output.handed_over(chain(first, rows)), ("id", name))
    except output.OutputError as error:
        raise output.OutputError(f"{done[-1]} is {name}, but {error}") from error
    if failures:
        raise failures[0]


def _readable(field: str, value: str) -> str:
    """Return the value of a field as people read it: a name, a text, or several names in one value."""
    if field in NAMES:
        return names.name(value)
    return value if field == "content" else names.marked(value)
