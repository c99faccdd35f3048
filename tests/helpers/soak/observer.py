"""Looks on while everything is killed: no position may go backward, no count may go wrong, and SQL is never ahead."""

import random
import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import closing

import redis
from sqlalchemy import text

from imcore import Chat
from imcore import msgid as msgids
from imcore.errors import TryAgain
from imcore.settings import Settings
from imcore.streams.keys import SEPARATOR

_EVERY_S = 0.1
_WATCHED = 30
"""So many messages of a group have their tallies watched."""

Spans = dict[tuple[str, int], int]
"""The offset of each span, which is a uid and where it joined. All are packed msgids."""


class Observer:
    """A thread that looks at all groups, again and again, as long as both servers answer."""

    def __init__(self, settings: Settings, gids: Sequence[str], chance: random.Random) -> None:
        self._settings, self._gids, self._chance = settings, gids, chance
        self.looks = 0
        self._faults: list[BaseException] = []
        self._highest: dict[Hashable, int] = {}
        self._watched: dict[tuple[str, int], int] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def raise_faults(self) -> None:
        """Raise the first fault that was seen."""
        if self._faults:
            raise self._faults[0]

    def close(self) -> None:
        """Stop looking."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        with Chat.connect(settings=self._settings) as chat, closing(self._client()) as client:
            while not (self._stopping.wait(_EVERY_S) or self._faults):
                for gid in self._gids:
                    self._unless_away(lambda gid=gid: self._look(chat, client, gid))

    def _client(self) -> redis.Redis:
        return redis.Redis.from_url(self._settings.redis_url)

    def _unless_away(self, look: Callable[[], None]) -> None:
        try:
            look()
            self.looks += 1
        except (redis.ConnectionError, TryAgain):
            pass
        except BaseException as error:  # the test's own thread raises it
            self._faults.append(error)

    def _look(self, chat: Chat, client: redis.Redis, gid: str) -> None:
        in_sql = self._spans_in_sql(chat, gid)
        last, in_redis = self._spans_in_redis(chat, client, gid)
        for span, offset in in_sql.items():
            self._never_back(("sql", gid, span), offset)
            assert offset <= in_redis.get(span, last), f"SQL is ahead of Redis: {gid} {span} {offset}"
        for span, offset in in_redis.items():
            self._never_back(("redis", gid, span), offset)
            assert offset <= last, f"an offset past the newest message: {gid} {span} {offset} {last}"
        if last:
            self._watch_tallies(chat, gid, last)

    def _never_back(self, what: Hashable, value: int) -> None:
        assert value >= self._highest.get(what, 0), f"{what} went back from {self._highest[what]} to {value}"
        self._highest[what] = value

    def _spans_in_sql(self, chat: Chat, gid: str) -> Spans:
        query = text("SELECT uid, joined_msgid, acked_msgid FROM group_spans WHERE gid = :gid")
        with chat.system.database.connection() as connection:
            return {(uid, joined): acked for uid, joined, acked in connection.execute(query, {"gid": gid})}

    def _spans_in_redis(self, chat: Chat, client: redis.Redis, gid: str) -> tuple[int, Spans]:
        """The newest message and all spans, of one moment; what any Redis tool shows agrees with them."""
        keys = chat.system.client.space.group(gid)
        with client.pipeline(transaction=True) as pipeline:
            pipeline.hmget(keys.meta, "seq", "last", "trimmed")
            pipeline.zrange(keys.acked, 0, -1, withscores=True)
            pipeline.zrange(keys.joined, 0, -1, withscores=True)
            pipeline.xinfo_groups(keys.stream)
            meta, acked, joined, groups = pipeline.execute()
        for name, value in zip(("seq", "last", "trimmed"), meta, strict=True):
            self._never_back((name, gid), int(value or 0))
        began = {span.decode(): int(score) for span, score in joined}
        offsets = {span.decode(): int(score) for span, score in acked}
        shown = {info["name"].decode(): info["last-delivered-id"].decode() for info in groups}
        assert shown == {
            uid: msgids.unpack_offset(offset) or "0-0" for uid, offset in offsets.items() if SEPARATOR not in uid
        }, f"the consumer groups of {gid} are not at the offsets"
        spans = {(span.partition(SEPARATOR)[0], began[span]): offset for span, offset in offsets.items()}
        return int(meta[1]), spans

    def _watch_tallies(self, chat: Chat, gid: str, last: int) -> None:
        """The number of readers of a message never goes down, and its recipients never change."""
        watched = [packed for watched_gid, packed in self._watched if watched_gid == gid]
        if len(watched) < _WATCHED and self._chance.random() < 0.1 and last not in watched:
            watched.append(last)
        for packed, tally in zip(watched, chat.tallies(gid, list(map(msgids.unpack, watched))), strict=True):
            read, unread = tally.read, tally.unread
            self._never_back(("read", gid, packed), read)
            recipients = self._watched.setdefault((gid, packed), read + unread)
            assert read + unread == recipients, f"{gid} {packed}: {read} and {unread} are not {recipients}"
