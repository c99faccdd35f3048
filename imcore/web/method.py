"""What a method of the protocol is, and who calls it."""

from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from inspect import cleandoc
from typing import TYPE_CHECKING, Any, TypeVar

from imcore.errors import ImError, InvalidInput
from imcore.web.auth import Identity
from imcore.web.parameters import Parameter, Schema, arguments, parameters_of

if TYPE_CHECKING:
    from imcore.aio import AsyncChat
    from imcore.gateway.fanout import Session
    from imcore.web.client import Client
    from imcore.web.hub import Hub

T = TypeVar("T")

MOST_LISTED = 1000
"""Members, tallies or receipts in one answer."""
MOST_MESSAGES = 200
"""Messages of a page of history, groups of a page of an inbox."""

FOR_WHOM = Parameter("uid", {"type": "string"}, is_required=False, default=None)
"""A parameter of every method, for a server's token."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, for whom, and on what socket. `uid` is None for a server that names nobody."""

    hub: "Hub"
    identity: Identity
    uid: str | None
    client: "Client | None" = None
    is_notification: bool = False

    @property
    def chat(self) -> "AsyncChat":
        return self.hub.chat

    @property
    def user(self) -> str:
        """The user for whom it is done."""
        return self.identity.uid if self.uid is None else self.uid

    @property
    def session(self) -> "Session | None":
        """The session of this socket, if it is this user's."""
        session = self.client.session if self.client else None
        return session if session and session.uid == self.user else None

    async def check_member(self, gid: str) -> None:
        """Raise NotMember unless the group is the user's own, or a server asks for nobody."""
        if self.uid is not None:
            await self.chat.member(gid, self.uid)


Function = Callable[..., Coroutine[Any, Any, Any]]


@dataclass(frozen=True, slots=True)
class Method:
    """One method. `is_ordered`: calls of one socket are performed in their order."""

    name: str
    function: Function
    summary: str
    parameters: tuple[Parameter, ...]
    result: Schema
    is_ordered: bool
    is_folded: bool
    """As a notification it is folded with others and sent later."""
    is_server_only: bool
    is_demo_only: bool

    async def perform(self, caller: Caller, params: Mapping[str, Any]) -> Any:
        """Perform it. Raise RpcError for wrong parameters, ImError for a refusal."""
        given = arguments(self.parameters, params)
        if FOR_WHOM in self.parameters:  # the caller knows it; `demo_token` has a parameter of that name
            given.pop(FOR_WHOM.name, None)
        return await self.function(caller, **given)


METHODS: dict[str, Method] = {}


def method(
    result: Schema, *, ordered: bool = False, folded: bool = False, server_only: bool = False, demo_only: bool = False
) -> Callable[[Function], Function]:
    """Make a function a method: its keyword-only parameters are the method's, its docstring the description."""

    def decorate(function: Function) -> Function:
        name = function.__name__
        known = (*parameters_of(function), FOR_WHOM)
        if demo_only:
            known = parameters_of(function)
        METHODS[name] = Method(
            name, function, cleandoc(function.__doc__ or ""), known, result, ordered, folded, server_only, demo_only
        )
        return function

    return decorate


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def list_of(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def at_most(most: int, limit: int | None) -> int:
    return most if limit is None else min(limit, most)


def check_count(items: list[str], what: str) -> None:
    if len(items) > MOST_LISTED:
        raise InvalidInput(f"{what} are {len(items)}: give at most {MOST_LISTED} at a time")


def without(error: type[ImError], answers: Iterable[T | BaseException]) -> Iterator[T]:
    """Yield the answers, and leave this error out. Raise any other one."""
    for answer in answers:
        if not isinstance(answer, BaseException):
            yield answer
        elif not isinstance(answer, error):
            raise answer
