"""Who says what in the soak test: the real chat, group by group, and who plays which part in it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.helpers.chat_data import ChatFile, Event


@dataclass(frozen=True)
class Line:
    """A message to send, for the first time or in a later round."""

    uid: str
    content: str
    client_msgid: str


@dataclass(frozen=True)
class Scene:
    """One group: what is said in it, who says it, and the guests, who only read, and come and go."""

    gid: str
    lines: Sequence[Line]
    speakers: Sequence[str]
    guests: Sequence[str]


@dataclass(frozen=True)
class Share:
    """A talker's part in a scene: the lines of some speakers; `readers` are those who ack by this talker's hand."""

    gid: str
    lines: Sequence[Line]
    readers: Sequence[str]
    guests: Sequence[str]


def scenes_of(files: Iterable[ChatFile]) -> list[Scene]:
    """The groups of the files. Those of two files are two groups, even where they have one name."""
    scenes = []
    for file in files:
        events = file.events()
        for gid in dict.fromkeys(event["gid"] for event in events):
            scenes.append(_scene(f"{file} {gid}", [event for event in events if event["gid"] == gid]))
    return scenes


def most_talkative(scenes: Sequence[Scene], count: int) -> list[str]:
    """The users who say most, over all groups: a third of them or fewer."""
    said = Counter(line.uid for scene in scenes for line in scene.lines)
    return [uid for uid, _ in said.most_common(min(count, len(said) // 3))]


def shares(scenes: Sequence[Scene], talkers: int, listeners: Sequence[str]) -> list[list[Share]]:
    """Deal the speakers and guests to this many talkers. Listeners ack by live sessions of their own."""
    return [[_share(scene, number, talkers, listeners) for scene in scenes] for number in range(talkers)]


def _scene(gid: str, events: Sequence[Event]) -> Scene:
    said = {event["client_msgid"]: event for event in events if event["type"] == "message"}
    lines = [Line(event["uid"], event["content"], client_msgid) for client_msgid, event in said.items()]
    speakers = sorted({line.uid for line in lines})
    return Scene(gid, lines, speakers, sorted({event["uid"] for event in events}.difference(speakers)))


def _share(scene: Scene, number: int, talkers: int, listeners: Sequence[str]) -> Share:
    speakers = scene.speakers[number::talkers]
    guests = [uid for uid in scene.guests if uid not in listeners][number::talkers]
    lines = [line for line in scene.lines if line.uid in speakers]
    return Share(scene.gid, lines, [uid for uid in speakers if uid not in listeners], guests)
