"""A user who is to be erased: what there is of them, and that nothing is left."""

from imcore import Chat
from imcore.model.direct import gid_of
from imcore.repair.check import check
from tests.helpers.leaks import leaks
from tests.helpers.workers import run_workers

ANN = "annika-Ω"
TEXT = "SECRET-4711"
CID = "cid-of-annika"
GONE = (ANN, TEXT, CID)
DM = gid_of(ANN, "bob")


def bring_ann(chat: Chat) -> None:
    """Ann has been everywhere: two spans in one group, a group without messages, one-to-one chats, a recall."""
    chat.system.database.upgrade()
    chat.create_group("team", [ANN, "bob", "cy"])
    chat.create_group("empty", [ANN])
    chat.create_group("other", ["bob", "cy"])
    for number in range(5):
        sent = chat.send("team", f"{TEXT} {number}", sender_uid=ANN, client_msgid=f"{CID}-{number}", meta={"is": TEXT})
        chat.send("team", f"hello {number}", sender_uid="bob")
        chat.ack("cy", "team")
    chat.ack("bob", "team", sent.msgid)
    chat.delivered(ANN, "team", chat.pull(ANN, "team")[0].msgid)
    chat.recall("team", sent.msgid, by=ANN)
    chat.send_direct(ANN, "hi there", sender_uid="bob", client_msgid="b-1")
    chat.send_direct("bob", TEXT, sender_uid=ANN)
    chat.send_direct(ANN, TEXT, sender_uid=ANN)
    chat.remove_members("team", [ANN])
    chat.send("team", "without her", sender_uid="bob")
    chat.add_members("team", [ANN])
    chat.send("team", TEXT, sender_uid=ANN)
    chat.mark_unread(ANN, "team", chat.send("team", "marked", sender_uid="cy").msgid)
    other = chat.send("other", "nonsense", sender_uid="bob")
    chat.recall("other", other.msgid, by=ANN, admin=True)
    chat.begin_session(ANN)


def assert_clean(chat: Chat) -> None:
    run_workers(chat)
    assert leaks(chat, GONE) == []
    assert list(check(chat.system)) == []
