"""A server on a unix socket whose answers the test gives: for answers that no real server gives here."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import BinaryIO

Answer = Callable[[list[bytes]], bytes]
"""Returns the answer to a command, as it goes over the wire."""


@contextmanager
def answering(path: Path, answer: Answer) -> Iterator[None]:
    """Answer on the socket, each connection in a thread of its own."""
    connections: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connections.append(connection)
                Thread(target=_serve, args=(connection, answer), daemon=True).start()

        listening = Thread(target=accept, daemon=True)
        listening.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            listening.join()
            for connection in connections:
                connection.close()


@contextmanager
def hanging_up(word: bytes, *, hears: bool = True) -> Iterator[int]:
    """Send these bytes to each client of a port of loopback, and hang up: at once, or once it `hears` something."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    if hears:
                        connection.recv(65_536)
                    connection.sendall(word)

        listening = Thread(target=accept, daemon=True)
        listening.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            listening.join()


def _serve(connection: socket.socket, answer: Answer) -> None:
    with connection.makefile("rb") as stream:
        while command := _command(stream):
            try:
                connection.sendall(answer(command))
            except OSError:
                return


def _command(stream: BinaryIO) -> list[bytes]:
    try:
        return [stream.read(int(stream.readline()[1:]) + 2)[:-2] for _ in range(int(stream.readline()[1:] or 0))]
    except (OSError, ValueError):
        return []
