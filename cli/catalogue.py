"""The commands of `im`, each with its module, and the options of all commands.

`im --help` is written from this alone: importing click would take longer than the rest. A unit test compares it with
the commands themselves.
"""

PURPOSE = "Instant messages with read receipts: send, pull, ack, and who has read what."
EXAMPLE = "im demo"

# The option, the name of its value (None: it takes no value), and its help.
SHARED_OPTIONS = (
    ("--redis-url", "URL", "Redis or Valkey. [IM_REDIS_URL; default: the embedded server]"),
    ("--database-url", "URL", "SQL database. [IM_DATABASE_URL; default: SQLite in the data directory]"),
    ("--data-dir", "DIR", "Where data is kept. [IM_DATA_DIR; default: the user's data directory]"),
    ("--json", None, "Print JSON Lines: one object a line, UTF-8."),
    ("--local-time", None, "Show times in this machine's time zone. JSON stays in UTC."),
)

# Per section: the command, the module of `imcore.cli.commands` that it is in, and its short help.
SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Run": {
        "up": ("up", "Run the embedded server and all workers, until Ctrl-C."),
        "serve": ("serve", "Run the WebSocket and HTTP gateway, until Ctrl-C."),
        "worker": ("worker", "Run one worker in the foreground."),
        "demo": ("demo", "Play the whole story on a throw-away stack, and check it."),
    },
    "Chat": {
        "group": ("group", "Create, set up, list and delete groups; add, remove and show members."),
        "user": ("user", "Set what users choose for themselves; erase a user."),
        "send": ("chat", "Send a message to a group."),
        "dm": ("chat", "Send a message to one person."),
        "pull": ("chat", "Show what a member has not acked, oldest first."),
        "ack": ("chat", "Confirm everything up to a message."),
        "history": ("history", "Page through what a member may see, read or not."),
        "unread": ("chat", "Count what a member has not read, per group."),
        "inbox": ("inbox", "Show a user's groups by their latest message."),
        "mark": ("inbox", "Mark a message and all later ones unread, for one member."),
        "unmark": ("inbox", "Remove a member's mark of a group."),
        "status": ("chat", "Show how many have read each message, or who has read one."),
        "why": ("why", "Show why a user has not read a message, or that they have."),
        "recall": ("chat", "Withdraw a message: what it said is gone for good."),
        "receipts": ("live", "Show tallies that changed since their sender confirmed them."),
        "listen": ("live", "Run a live session until Ctrl-C."),
        "log": ("live", "Show a user's local database, as chat."),
        "import": ("import_", "Replay a file of chat events."),
        "export": ("export", "Write a group, or all that a user may see, as chat events."),
    },
    "Operate": {
        "health": ("health", "Show whether Redis, SQL and the workers are well."),
        "stats": ("operate", "Show streams, backlogs, dead letters and who is online."),
        "check": ("operate", "Compare Redis with the SQL database."),
        "dead": ("operate", "List, show, requeue and drop dead letters."),
        "trim": ("operate", "Drop stream entries that are stored in SQL and old enough."),
        "rebuild": ("operate", "Rebuild Redis from the SQL database."),
        "acl": ("operate", "Print Redis ACL rules for gateways, workers and readers."),
        "token": ("serve", "Print a token for `im serve`."),
        "db": ("operate", "Bring the SQL database and the functions in Redis up to date."),
        "bench": ("bench", "Measure, each figure beside a yardstick from the same rounds."),
    },
}

ENDED_BY_SIGNALS = {"up", "serve", "worker", "listen"}
"""The commands that run until SIGINT or SIGTERM ends them in order."""

COMMANDS = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


def help_text() -> str:
    sections = {name: [(command, text) for command, (_, text) in table.items()] for name, table in SECTIONS.items()}
    options = [(f"{flag} {metavar or ''}".rstrip(), text) for flag, metavar, text in SHARED_OPTIONS]
    options += [("--version", "Print the version."), ("-h, --help", "Print this.")]
    return "\n\n".join(
        [
            "Usage: im [OPTIONS] COMMAND [ARGS]...",
            f"  {PURPOSE}",
            *(_section(title, rows) for title, rows in sections.items()),
            _section("Options (before or after the command)", options),
            f"Example:\n  {EXAMPLE}\n\n`im COMMAND --help` says more, with an example.\n",
        ]
    )


def _section(title: str, rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join([f"{title}:", *(f"  {name.ljust(width)}  {text}" for name, text in rows)])
