"""All that is stored, as one value to compare: nothing may differ after a call that was refused."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from imcore.chat import Chat
from imcore.streams.keys import CONFIG

Fingerprint = dict[str, object]
"""What is stored, by key of Redis or table of SQL: an assertion on two of them names the keys that differ."""


def fingerprint(chat: Chat, *files: Path) -> Fingerprint:
    """Return what Redis and these SQLite files hold.

    But for `im:config`: the first write fixes how many partitions there are, whatever becomes of it.
    """
    client: Any = chat.system.client.driver
    keys = sorted(key for key in client.keys("*") if key != CONFIG.encode())
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.dump(key)
            pipe.pexpiretime(key)
        answers = pipe.execute()
    redis = {key.decode(): each for key, each in zip(keys, zip(answers[::2], answers[1::2], strict=True), strict=True)}
    return redis | {f"{file.name} {name}": rows for file in files for name, rows in _tables(file)}


def _tables(file: Path) -> Iterator[tuple[str, object]]:
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        for name in names:
            yield name, sorted(connection.execute(f'SELECT * FROM "{name}"'), key=repr)
