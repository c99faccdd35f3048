"""`im listen` as a real process: who is online, what is shown and acked, and what happens while the server is away."""

import json
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from imcore.device.local_database import path_of
from tests.helpers.commands import END_S, Im
from tests.helpers.deadline import wait_until
from tests.helpers.live_stack import Stack
from tests.helpers.servers import require_server, start_valkey

# Presence.


def is_online(stack: Stack, uid: str) -> bool:
    return bool(stack.chat.online([uid]))


def shown_online(stack: Stack) -> dict[str, bool]:
    return {line["uid"]: line["online"] for line in stack.im.json("group", "show", "team")}


def test_a_listener_is_online_and_not_for_long_after_it_was_killed(tmp_path: Path) -> None:
    with closing(Stack(tmp_path, heartbeat_ms=300, online_ms=1500)) as stack:
        stack.chat.create_group("team", ["ann", "bob"])
        one = stack.listen("bob")
        wait_until(lambda: is_online(stack, "bob"), timeout_s=END_S)
        wait_until(lambda: shown_online(stack) == {"ann": False, "bob": True}, timeout_s=END_S)
        one.kill()
        wait_until(lambda: not is_online(stack, "bob"), timeout_s=END_S)


def test_a_session_that_slept_until_it_expired_continues(tmp_path: Path) -> None:
    with closing(Stack(tmp_path, heartbeat_ms=200, online_ms=600)) as stack:
        stack.chat.create_group("team", ["ann", "bob"])
        bob = stack.listen("bob")
        wait_until(lambda: is_online(stack, "bob"), timeout_s=END_S)
        # When
        bob.send(signal.SIGSTOP)
        wait_until(lambda: not is_online(stack, "bob"), timeout_s=END_S)
        stack.chat.send("team", "hi", sender_uid="ann")
        bob.send(signal.SIGCONT)
        # Then
        bob.wait_for(1)
        wait_until(lambda: is_online(stack, "bob"), timeout_s=END_S)
        assert bob.end() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_clean_end_acks_and_goes_offline_at_once(stack: Stack, number: signal.Signals) -> None:
    stack.chat.create_group("team", ["ann", "bob"])
    stack.chat.send("team", "hi", sender_uid="ann")
    bob = stack.listen("bob", "--ack-interval", "3600")
    bob.wait_for(1)
    assert len(stack.chat.pull("bob")) == 1
    assert bob.end(number) == 0
    assert bob.errors == ""
    assert stack.im.json("unread", "bob") == [{"gid": "team", "unread": 0}]
    assert not is_online(stack, "bob")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells which signals a process holds back")
@pytest.mark.parametrize("words", [["listen", "bob"], ["worker", "receipts"], ["up"]], ids=lambda words: words[0])
def test_a_signal_that_comes_while_the_program_is_loaded_ends_it_in_order(
    tmp_path: Path, words: list[str], number: signal.Signals
) -> None:
    # Given signals at any moment from when the program can know of them; what it does then is to wait for a server
    require_server()
    im = Im(data_dir=tmp_path)
    for delay_s in (0, 0.02, 0.05, 0.1, 0.2):
        process = im.start(*words)
        wait_until(lambda: knows_of(process.pid, number) or process.poll() is not None, timeout_s=END_S)  # noqa: B023
        time.sleep(delay_s)
        process.send_signal(number)
        out, err = process.communicate(timeout=END_S)
        assert process.returncode == 0, err
        assert "Traceback" not in out + err


def knows_of(pid: int, number: signal.Signals) -> bool:
    """Whether a process holds back a signal, or handles all of them by now."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = {name: mask for name, mask in (line.split(":", 1) for line in lines) if name in {"SigBlk", "SigCgt"}}
    held, handled = (int(masks[name], 16) for name in ("SigBlk", "SigCgt"))
    return bool((held >> number - 1 | handled >> signal.SIGTERM - 1) & 1)


# What is shown.


def test_messages_stored_before_they_were_shown_are_shown_and_only_then_acked(stack: Stack) -> None:
    # Given what a pull has stored, beyond what it has printed
    stack.chat.create_group("team", ["ann", "bob"])
    for number in range(3):
        stack.chat.send("team", str(number), sender_uid="ann")
    assert len(stack.im.json("pull", "bob", "--limit", "1")) == 1
    assert len(stack.log("bob")) == 3
    # When
    looking = stack.listen("bob", "--no-ack")
    looking.wait_for(3)
    assert looking.end() == 0
    bob = stack.listen("bob")
    bob.wait_for(3)
    # Then
    assert [line["content"] for line in bob.messages] == ["0", "1", "2"]
    assert bob.end() == 0
    assert stack.im.json("unread", "bob") == [{"gid": "team", "unread": 0}]
    again = stack.listen("bob")
    wait_until(lambda: is_online(stack, "bob"), timeout_s=END_S)
    assert again.end() == 0
    assert again.messages == []


def test_messages_that_could_not_be_written_are_not_acked(stack: Stack) -> None:
    # Given more than fits into a pipe
    stack.chat.create_group("team", ["ann", "bob"])
    for number in range(5):
        stack.chat.send("team", f"{number}" + "x" * 60_000, sender_uid="ann")
    # When its reader goes away after the first line
    process = stack.im.start("listen", "bob", "--json", "--ack-every", "1", "--ack-interval", "0")
    assert process.stdout
    first = json.loads(process.stdout.readline())
    process.stdout.close()
    # Then
    assert process.wait(END_S) == 1
    assert process.stderr
    assert process.stderr.read() == "im: the output could not be written: Broken pipe\n"
    process.stderr.close()
    assert first["content"][0] == "0"
    assert [line["content"][0] for line in stack.im.json("pull", "bob")][-4:] == ["1", "2", "3", "4"]


def test_a_reader_who_has_stopped_reading_holds_nobody_up(stack: Stack) -> None:
    # Given more than fits into a pipe
    stack.chat.create_group("team", ["ann", "bob"])
    for number in range(5):
        stack.chat.send("team", f"{number}" + "x" * 60_000, sender_uid="ann")
    process = stack.im.start("listen", "bob", "--json")
    wait_until(lambda: len(stack.log("bob")) == 5, timeout_s=END_S)
    # When nobody reads it
    process.terminate()
    assert process.wait(END_S) == 0
    # Then
    assert process.communicate()[1] == ""
    assert len(stack.im.json("pull", "bob")) == 5


def test_a_session_without_a_local_database(stack: Stack) -> None:
    stack.chat.create_group("team", ["ann", "bob"])
    stack.chat.send("team", "hi", sender_uid="ann")
    bob = stack.listen("bob", "--no-local")
    bob.wait_for(1)
    assert bob.end() == 0
    assert stack.im.json("unread", "bob") == [{"gid": "team", "unread": 0}]
    assert not (stack.folder / "clients").exists()


# Bad input.


def test_a_listen_that_cannot_begin_says_so_in_one_line_and_changes_nothing(stack: Stack) -> None:
    # Given
    im = stack.im
    stack.chat.system.client.upgrade()
    assert "'nobody' is in no group" in im.refusal("listen", "nobody")
    assert not (stack.folder / "clients").exists()
    stack.chat.create_group("team", ["ann", "bob"])
    path = path_of(stack.folder, "bob")

    # A session holds it
    bob = stack.listen("bob")
    wait_until(lambda: is_online(stack, "bob"), timeout_s=END_S)
    assert "another session of 'bob' holds the local database" in im.refusal("listen", "bob")
    assert bob.end() == 0

    # It is newer than the program
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    assert "is of a newer imcore: upgrade imcore" in im.refusal("listen", "bob")
    assert "is of a newer imcore: upgrade imcore" in im.refusal("log", "bob")

    # It is damaged
    path.write_bytes(b"this is no database" * 1000)
    assert "is damaged: move it away" in im.refusal("listen", "bob")
    assert "is damaged: move it away" in im.refusal("log", "bob")
    assert path.read_bytes() == b"this is no database" * 1000

    # And moved away, it is made anew
    path.unlink()
    bob = stack.listen("bob")
    stack.chat.send("team", "hi", sender_uid="ann")
    bob.wait_for(1)

    # Nobody is anybody once there is a server
    stack.server.kill()
    nobody = stack.listen("nobody")
    wait_until(lambda: nobody.errors, timeout_s=END_S)
    assert (nobody.runs, bob.runs) == (True, True)
    stack.server = start_valkey(stack.folder / "server")
    wait_until(lambda: not nobody.runs, timeout_s=END_S)
    first, second = nobody.errors.splitlines()
    assert first.startswith("im: no answer from Redis at ")
    assert second.startswith("im: 'nobody' is in no group")
    assert not path_of(stack.folder, "nobody").exists()
    assert bob.end() == 0


# The server goes away.


def test_a_listener_that_starts_before_the_server_waits_for_it(stack: Stack) -> None:
    # Given
    stack.chat.create_group("team", ["ann", "bob"])
    stack.server.kill()
    bob, ann = stack.listen("bob"), stack.listen("ann", "--no-local")
    wait_until(lambda: bob.errors and ann.errors, timeout_s=END_S)
    assert ann.end() == 0
    # When
    stack.server = start_valkey(stack.folder / "server")
    stack.chat.send("team", "hi", sender_uid="ann")
    # Then
    bob.wait_for(1)
    assert bob.end() == 0
    for session in (bob, ann):
        [line] = session.errors.splitlines()
        assert line.startswith("im: no answer from Redis at ")
        assert line.endswith("; waiting for it")


def test_a_listener_that_starts_before_the_functions_waits_for_them(stack: Stack) -> None:
    # Given
    stack.chat.create_group("team", ["ann", "bob"])
    stack.chat.system.client.execute_once("FUNCTION FLUSH", "SYNC")
    bob = stack.listen("bob")
    wait_until(lambda: bob.errors, timeout_s=END_S)
    # When
    stack.chat.send("team", "hi", sender_uid="ann")
    # Then
    bob.wait_for(1)
    assert bob.end() == 0
    [line] = bob.errors.splitlines()
    assert "has no functions of imcore: start a worker" in line
    assert line.endswith("; waiting for it")


def test_messages_queued_while_the_server_is_away_go_out_when_it_is_back(stack: Stack) -> None:
    stack.chat.create_group("team", ["ann", "bob"])
    bob = stack.listen("bob")
    wait_until(lambda: is_online(stack, "bob"), timeout_s=END_S)
    # When
    stack.server.kill()
    for text in ("one", "two"):
        [line] = stack.im.json("send", "team", text, "--from", "bob", "--queue")
        assert (line["content"], line["state"]) == (text, "waiting")
    stack.server = start_valkey(stack.folder / "server")
    # Then
    wait_until(lambda: [state for *_, state in stack.log("bob")] == ["stored", "stored"], timeout_s=END_S)
    assert [line["content"] for line in stack.im.json("pull", "ann")] == ["one", "two"]
    assert bob.end() == 0
    assert "Traceback" not in bob.errors


def test_the_first_message_of_one_who_is_in_no_group_goes_out_with_a_session(stack: Stack) -> None:
    # Given
    stack.chat.create_group("team", ["bob"])
    stack.server.kill()
    [line] = stack.im.json("dm", "bob", "hello", "--from", "ann", "--queue")
    assert line["state"] == "waiting"
    ann = stack.listen("ann")
    wait_until(lambda: ann.errors, timeout_s=END_S)
    # When
    stack.server = start_valkey(stack.folder / "server")
    # Then
    wait_until(lambda: is_online(stack, "ann"), timeout_s=END_S)
    assert [line["content"] for line in stack.im.json("pull", "bob")] == ["hello"]
    assert ann.end() == 0
    assert [state for *_, state in stack.log("ann")] == ["stored"]


# Receipts.


def test_one_pull_shows_the_same_tallies_after_an_absence(stack: Stack) -> None:
    # Given ann, who listens, and bob, who does not
    uids = ["u0", "u1", "u2"]
    stack.chat.create_group("team", ["ann", "bob", *uids])
    stack.work()
    ann = stack.listen("ann", "--no-ack")
    for number in range(2):
        for uid in ("ann", "bob"):
            stack.im.json("send", "team", f"{number} of {uid}", "--from", uid)
        stack.chat.ack(uids[number], "team")
    ann_has = ["read 2/4", "read 1/4"]
    wait_until(lambda: [state for *_, state in stack.log("ann") if state] == ann_has, timeout_s=END_S)
    wait_until(lambda: [event["read"] for event in ann.receipts][-1:] == [1], timeout_s=END_S)
    # When
    stack.im.json("pull", "bob")
    # Then
    assert [line["state"] for line in stack.im.json("log", "bob") if line["state"]] == ann_has
    tallies = [(line["read"], line["unread"]) for line in stack.im.json("status", "team")]
    assert tallies == [(2, 2)] * 2 + [(1, 3)] * 2
    assert [(line["read"], line["unread"]) for line in stack.im.json("receipts", "bob", "--ack")] == tallies[1::2]
    assert stack.im.json("receipts", "bob") == []


def test_what_another_device_has_read_is_a_line(stack: Stack) -> None:
    stack.chat.create_group("team", ["ann", "bob"])
    stack.work()
    bob = stack.listen("bob", "--no-ack", "--no-local")
    sent = stack.chat.send("team", "hi", sender_uid="ann")
    bob.wait_for(1)
    stack.chat.ack("bob", "team", sent.msgid)
    position = {"event": "position", "gid": "team", "last_ack_msgid": sent.msgid}
    wait_until(lambda: bob.events[1:] == [position], timeout_s=END_S)
    assert bob.end() == 0


def test_receipts_with_the_heartbeat(tmp_path: Path) -> None:
    with closing(Stack(tmp_path, heartbeat_ms=200)) as stack:
        stack.chat.create_group("team", ["ann", "bob"])
        stack.work()
        ann = stack.listen("ann", "--receipts", "poll", "--ack-interval", "0.1")
        stack.chat.send("team", "hi", sender_uid="ann")
        stack.chat.ack("bob", "team")
        wait_until(lambda: [(event["read"], event["unread"]) for event in ann.receipts] == [(1, 0)], timeout_s=END_S)
        wait_until(lambda: stack.chat.receipts("ann") == [], timeout_s=END_S)
        assert ann.end() == 0


# One-to-one.


def test_one_to_one_is_shown_by_the_name_of_the_other(stack: Stack) -> None:
    # Given two who have never spoken
    stack.work()
    [first] = stack.im.json("dm", "bob", "hi", "--from", "ann")
    bob, ann = stack.listen("bob"), stack.listen("ann")
    bob.wait_for(1)
    # When
    stack.im.json("dm", "ann", "hello", "--from", "bob")
    stack.im.json("dm", "ann", "note to self", "--from", "ann")
    ann.wait_for(1)
    wait_until(lambda: "read by all" in {state for *_, state in stack.log("ann")}, timeout_s=END_S)
    # Then
    assert {event["peer"] for event in bob.messages} == {"ann"}
    assert {line["peer"] for line in stack.im.json("log", "bob")} == {"ann"}
    assert {line["peer"] for line in stack.im.json("log", "ann")} == {"ann", "bob"}
    assert {line["peer"] for line in stack.im.json("unread", "ann")} == {"ann", "bob"}
    assert bob.end() == ann.end() == 0
    stack.im.json("dm", "bob", "are you there?", "--from", "ann")
    [line] = stack.im.json("pull", "bob")
    assert (line["gid"], line["peer"], line["content"]) == (first["gid"], "ann", "are you there?")
    assert "\tdm:ann\t" in stack.im.run("pull", "bob").stdout
    assert "\ndm:ann\t" in stack.im.run("log", "bob").stdout
    assert "\ndm:ann\t" in stack.im.run("unread", "bob").stdout
