"""Why somebody has not read a message."""

from datetime import datetime

import click

from imcore.cli import output
from imcore.cli.app import Invocation, command
from imcore.cli.names import gid_alone, name
from imcore.cli.records import shown
from imcore.model.records import record_of
from imcore.model.values import Why

_SENTENCES = {
    "sender": "{uid} has sent it",
    "not-a-member": "{uid} was not a member of {gid} when it was sent",
    "receipts-off": "{uid} tells nobody what they read",
    "read": "{uid} has read it{since}",
    "left": "{uid} has left {gid}{since}, and had not read it",
    "delivered": "it has arrived at a client of {uid}, who has not read it",
    "online": "{uid} is online, but no client of theirs has confirmed that it has arrived",
    "offline": "{uid} is offline{since}, and no client of theirs has confirmed that it has arrived",
}
_SINCE = {"read": " at {}", "left": " at {}", "offline": " since {}"}
_UNKNOWN = {"read": " (when, no worker has stored yet)", "offline": " and was never seen online"}


@command("why", example="im why team 1767225600000-0 bob")
@click.argument("gid")
@click.argument("msgid")
@click.argument("uid")
def why(run: Invocation, gid: str, msgid: str, uid: str) -> None:
    """The first that applies: UID has sent it, was no member, tells nobody what they read, has read it, has left,
    has it on a client, is online, or is offline. With --json in one word, and since when.
    """
    with run.chat() as chat:
        answer = chat.why(gid_alone(gid), msgid, uid)
    if run.json:
        run.show([record_of(answer)], ())
    else:
        output.say(_sentence(answer, local=run.local_time))


def _sentence(answer: Why, *, local: bool) -> str:
    since = _since(answer.why, answer.since, local=local)
    return _SENTENCES[answer.why].format(uid=name(answer.uid), gid=name(answer.gid), since=since)


def _since(word: str, since: datetime | None, *, local: bool) -> str:
    if since is None:
        return _UNKNOWN.get(word, "")
    return _SINCE[word].format(shown(since, local=local, short=False))
