"""The storm over real sockets: 40 of 200 members read and ack each message that another one sends.

The server is a process, and so are its clients together, whose CPU is not counted. The yardstick is the least that a
server of sockets does, with the same clients. Where it passes a message on and counts the acks, ours also stores them,
keeps everybody's position, and tells the sender who has read. Clients that say `delivered` before each ack are compared
with those that only ack.
"""

import json
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from imcore.cli.bench.harness import cpu
from imcore.cli.bench.harness.figures import Aim, Figure, Measured, Progress, RoundPlan, Rounds, Yardstick, interleave
from imcore.cli.bench.harness.servers import BenchServers, RunningServers
from imcore.cli.bench.harness.sessions import IN_FLIGHT, MEMBERS, ONLINE
from imcore.cli.bench.harness.traffic import TEXT
from imcore.cli.bench.scenarios.storm import CPU_OF_ALL, DELIVERED_AIM, WINDOW_MS, cpu_figures, cpu_spent
from imcore.cli.sandbox import Processes
from imcore.errors import ImError
from imcore.web import extra

if TYPE_CHECKING:
    from imcore.cli.bench.harness.socket_clients import StormPlan

_LONGEST_S = 300
_SPEED = "over sockets"
_ACKED = "acks per message"

_SERVE, _APPLICATION, _BARE = "im serve", "the ASGI application", "websockets' broadcast"
_NO_LIMIT = {"IM_WEB_CALLS_PER_S": "1000000", "IM_WEB_CALLS_BURST": "1000000"}

_AIMS_US = {(_SERVE, 1): 1000, (_SERVE, 10): 500, (_APPLICATION, 1): 1600, (_APPLICATION, 10): 700}


class _Storm(NamedTuple):
    """One storm: each client acks every `ack_every` messages. `delivers`: clients also confirm each delivery."""

    name: str
    ack_every: int
    messages: int
    delivers: bool = False

    def subject(self, server: str) -> str:
        return f"{server}, {self.name}"


@dataclass(frozen=True, slots=True)
class _Server:
    """A server process."""

    name: str
    port: int
    pid: int


def run_web(servers: BenchServers, plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Measure `im serve` and the ASGI application on uvicorn, and the yardstick in the same rounds."""
    extra.require("im bench storm --web")
    servers = servers.using(servers.tables(), receipt_window_ms=WINDOW_MS)
    key = secrets.token_hex(32)
    with ExitStack() as things:
        running = things.enter_context(servers.running("persist", "receipts"))
        environment = {**servers.environment(), "IM_WEB_KEY": key, **_NO_LIMIT}
        processes = things.enter_context(Processes(environment, "the server"))
        contestants = {
            storm.subject(server.name): partial(_turn, running, server, _clients(things, running, server, key, storm))
            for server in _start(processes)
            for storm in _storms(plan, server.name)
        }
        rounds = interleave(contestants, plan, progress)
    return [
        figure
        for name in (_SERVE, _APPLICATION, _BARE)
        for storm in _storms(plan, name)
        for figure in _figures(name, storm, rounds)
    ]


def _storms(plan: RoundPlan, server: str) -> list[_Storm]:
    few = plan.size(4000, 200)
    storms = [_Storm(_ACKED, 1, few), _Storm("acks of 10", 10, plan.size(10_000, 400))]
    return storms if server == _BARE else [*storms, _Storm("delivered before each ack", 1, few, delivers=True)]


def _start(processes: Processes) -> list[_Server]:
    uvicorn = ("uvicorn", "--factory", "imcore.web:app", "--no-access-log", "--log-level", "warning")
    commands = {
        _SERVE: ("imcore.web", "--port"),
        _APPLICATION: (*uvicorn, "--ws", "websockets-sansio", "--ws-per-message-deflate", "0", "--port"),
        _BARE: ("imcore.cli.bench.baseline.websocket_broadcast",),
    }
    ports = dict(zip(commands, _free_ports(len(commands)), strict=True))
    for name, arguments in commands.items():
        command = [sys.executable, "-P", "-m", *arguments, str(ports[name])]
        processes.start(name, command, processes.environment)
    for name, port in ports.items():
        processes.wait(partial(_accepts, port), f"{name} listens on port {port}")
    return [_Server(name, ports[name], processes.pids[name]) for name in commands]


def _free_ports(number: int) -> list[int]:
    with ExitStack() as things:
        bound = [things.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [each.getsockname()[1] for each in bound]


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _turn(running: RunningServers, server: _Server, clients: "_Clients") -> Measured:
    clocks: dict[str, Callable[[], float]] = {server.name: partial(cpu.tree_seconds, server.pid)}
    if server.name != _BARE:
        others = running.clocks()
        clocks |= {name: others[name] for name in others if name != cpu.HERE}
    running.wait_until_stored()
    began = cpu.read(clocks)
    seen = clients.storm()
    running.wait_until_stored()
    return seen | cpu_spent(began, clocks, clients.messages)


class _Clients:
    """The process of the clients, which are connected all the time."""

    def __init__(self, things: ExitStack, running: RunningServers, plan: "StormPlan", going: int) -> None:
        self.messages = plan.messages
        self._going = going
        self._lines: list[str] = []
        environment = running.servers.environment()
        self._processes = things.enter_context(
            Processes(environment, "the process of the", lambda _, line: self._lines.append(line))
        )
        command = [sys.executable, "-P", "-m", "imcore.cli.bench.harness.socket_clients", json.dumps(asdict(plan))]
        self._processes.start("clients", command, environment, pass_fds=(plan.go_fd,))
        self._line()  # they are ready

    def storm(self) -> dict[str, float]:
        """Let them live through a storm; return what they have measured."""
        os.write(self._going, b"\n")
        measured: dict[str, float] = json.loads(self._line())
        return measured

    def _line(self) -> str:
        """Wait for the next line, and return it. Raise ImError if it does not come."""
        try:
            self._processes.wait(lambda: bool(self._lines), "the clients have an answer", timeout_s=_LONGEST_S)
        except ImError as error:
            raise ImError("; ".join([str(error), *self._lines[-1:]])) from error
        return self._lines.pop(0)


def _clients(things: ExitStack, running: RunningServers, server: _Server, key: str, storm: _Storm) -> _Clients:
    """Connect clients to a server, in a group of their own."""
    from imcore.cli.bench.harness.socket_clients import StormPlan  # noqa: PLC0415 (of the extra, which may be missing)

    gid = f"{running.servers.name}-web-{server.port}-{storm.ack_every}{'-delivered' * storm.delivers}"
    uids = [f"{gid}-{number}" for number in range(MEMBERS)]
    running.chat.create_group(gid, uids)
    reading, going = os.pipe()
    things.callback(os.close, going)
    try:
        plan = StormPlan(
            url=f"ws://127.0.0.1:{server.port}/ws",
            gid=gid,
            tokens=[gid] * (ONLINE + 1) if server.name == _BARE else _tokens(key, uids[: ONLINE + 1]),
            messages=storm.messages,
            ack_every=storm.ack_every,
            in_flight=IN_FLIGHT,
            text=TEXT,
            go_fd=reading,
            is_bare=server.name == _BARE,
            delivers=storm.delivers,
        )
        return _Clients(things, running, plan, going)
    finally:
        os.close(reading)


def _tokens(key: str, uids: Sequence[str]) -> list[str]:
    from imcore.web.auth import Tokens  # noqa: PLC0415 (of the extra, which may be missing)
    from imcore.web.settings import WebSettings  # noqa: PLC0415 (as above)

    tokens = Tokens(WebSettings(key=key))
    return [tokens.issue(uid, 3600) for uid in uids]


_MEASURES = {
    "cycles": ("cycles", "1/s"),
    "delivery p50": ("send to last of 40, p50", "ms"),
    "delivery p99": ("send to last of 40, p99", "ms"),
    "receipt p50": ("from there to 40/199, p50", "ms"),
    "receipt p99": ("from there to 40/199, p99", "ms"),
    "digests": ("receipt frames, per message", ""),
}


def _figures(name: str, storm: _Storm, rounds: Mapping[str, Mapping[str, Rounds]]) -> Iterator[Figure]:
    own, yardsticks = rounds[storm.subject(name)], _yardsticks(name, storm, rounds)
    for key, (what, unit) in _MEASURES.items():
        if key in own:
            yield Figure(
                bench="storm",
                subject=storm.subject(name),
                what=what,
                unit=unit,
                table=_SPEED,
                charted=key == "cycles",
                rounds=own[key],
                yardstick=yardsticks.get(key),
            )
    yield from cpu_figures("storm", storm.subject(name), own, yardsticks.get(CPU_OF_ALL), _aim(name, storm))


def _yardsticks(name: str, storm: _Storm, rounds: Mapping[str, Mapping[str, Rounds]]) -> dict[str, Yardstick]:
    """Return what is compared with what: nothing for the yardstick itself."""
    if name == _BARE:
        return {}
    beside = subject = f"{name}, {_ACKED}"
    if not storm.delivers:
        beside, subject = _BARE, storm.subject(_BARE)
    return {key: Yardstick(beside, values) for key, values in rounds[subject].items()}


def _aim(name: str, storm: _Storm) -> Aim | None:
    if storm.delivers:
        return DELIVERED_AIM
    return None if name == _BARE else Aim("<=", _AIMS_US[name, storm.ack_every], of_ratio=False)
