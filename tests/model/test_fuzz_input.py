"""What comes as text from outside, at random: settings, URLs, msgids, lines to import. Only ImErrors, and no change.

`IM_FUZZ_EXAMPLES` says how many examples, as in test_fuzz.py.
"""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import fakeredis
from hypothesis import given
from hypothesis import strategies as st

from imcore import Chat
from imcore import msgid as msgids
from imcore.errors import ImError, InvalidInput
from imcore.importer.importer import import_events
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams.client import RedisClient
from imcore.system import System
from tests.model.examples import fuzzed
from tests.model.fingerprint import fingerprint
from tests.model.mischief import GIDS, MSGIDS, UIDS, texts, wrong_types

_numbers = st.integers(-(2**70), 2**70).map(str)
_urls = st.tuples(
    st.sampled_from(["redis", "rediss", "unix", "sqlite", "postgresql", "mysql", "http", ""]),
    st.sampled_from(["://", ":///", ":", "://user:secret@", "://[::1"]),
    texts,
    st.sampled_from(["", "?db=x", "?ssl_ca_certs=/none", "?decode_responses=1", "?port=0", "?a=%00", ":99999/0"]),
).map("".join)
_variables = st.dictionaries(
    st.sampled_from([f"IM_{field.name.upper()}" for field in fields(Settings)]), texts | _numbers | _urls, max_size=3
)


def test_random_settings() -> None:
    @fuzzed(150)
    @given(_variables)
    def fuzz(environ: dict[str, str]) -> None:
        with suppress(ImError):
            settings = Settings.from_env(environ)
            assert "secret" not in repr(replace(settings, data_dir=Path()))

    fuzz()


def complaint(connect: Callable[[], Chat | Database]) -> str:
    """What is said against a URL; nothing, if it is taken."""
    try:
        connect().close()
    except ImError as error:
        return str(error)
    return ""


def test_random_urls(tmp_path: Path) -> None:
    """Nothing is sent before the first call, so these reach no server."""

    @fuzzed(200)
    @given(_urls, _urls)
    def fuzz(redis_url: str, database_url: str) -> None:
        settings = Settings.from_env({}, data_dir=str(tmp_path))
        for connect in (
            lambda: Chat.connect(redis_url, settings=settings),
            lambda: Database.connect(database_url, data_dir=tmp_path),
        ):
            assert "secret" not in complaint(connect)

    fuzz()


def test_random_msgids() -> None:
    @fuzzed(300)
    @given(texts | st.sampled_from(MSGIDS) | st.from_regex(msgids._TEXT))
    def fuzz(text: str) -> None:
        try:
            packed = msgids.pack(text)
        except InvalidInput:
            return
        assert msgids.unpack(packed) == text

    fuzz()


_values: st.SearchStrategy[Any] = (
    st.sampled_from([*GIDS, *UIDS]) | texts | wrong_types.filter(lambda value: not isinstance(value, bytes | type))
)
_events = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["message", "join", "leave", "rename", "ack"]),
        "gid": st.sampled_from(GIDS) | _values,
        "uid": st.sampled_from(UIDS) | _values,
    },
    optional={
        "content": st.just("hi") | _values,
        "client_msgid": st.sampled_from(["1", "2", "3"]) | _values,
        "new_uid": st.sampled_from(UIDS) | _values,
        "time": st.sampled_from(["2004-12-25T09:00:00Z", "2004", "9999-12-31T23:59:59-23:59"]) | _values,
    },
)
_lines = st.one_of(
    _events.map(lambda event: json.dumps(event).encode()),
    _events.map(lambda event: json.dumps(event, ensure_ascii=False).encode(errors="surrogatepass")),
    st.binary(max_size=20),
    st.sampled_from([b"{", b"[" * 100_000, b"1" * 5000, b"null", b'{"type": []}', b"\xff", b"\xef\xbb\xbf{}", b" "]),
)


def test_random_lines_to_import(new_folder: Callable[[], Path]) -> None:
    """A line that is refused changes nothing; each is imported for itself, and then all of them at once."""

    @fuzzed(25)
    @given(st.lists(_lines, min_size=1, max_size=12))
    def fuzz(lines: list[bytes]) -> None:
        folder = new_folder()
        settings = replace(Settings.from_env({}, data_dir=str(folder)), partitions=2)
        client = RedisClient(fakeredis.FakeRedis(server=fakeredis.FakeServer()), partitions=2)
        with Chat(System(client, Database.connect(f"sqlite:///{folder / 'imcore.db'}"), settings)) as chat:
            errors: list[str] = []
            for line in lines:
                before = fingerprint(chat, folder / "imcore.db")
                summary = import_events(chat, [line], on_error=lambda _, reason: errors.append(reason))
                if summary.errors:
                    assert fingerprint(chat, folder / "imcore.db") == before, errors[-1]
            assert import_events(chat, lines, on_error=lambda *_: None).messages == 0
            assert all(re.fullmatch(r"[^\n]+", reason) for reason in errors)

    fuzz()
