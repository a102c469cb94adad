"""Commands that clients send: typed, and decoded from the lines of a frame.

Payloads (`data`) pass through as the raw JSON they came as. Names are the wire's: a topic is a `channel` here.
Source: https://centrifugal.dev/docs/transports/client_protocol
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from broker.wire.codes import Close, CloseCode, CommandError, ErrorCode, close

ABSENT: Final = msgspec.Raw(b"")
"""A payload that was not sent at all; an explicit `null` is `Raw(b"null")`."""
MAX_ID = 0xFFFFFFFF
Offset = Annotated[int, msgspec.Meta(ge=0)]
"""A place in a topic's history; 0 is before the first."""


class Recover(msgspec.Struct):
    """Where a client's server-side subscription stood."""

    recover: bool = False
    epoch: str = ""
    offset: Offset = 0


class Connect(msgspec.Struct):
    token: str = ""
    data: msgspec.Raw = ABSENT
    name: str = ""
    version: str = ""
    headers: dict[str, str] = {}
    subs: dict[str, Recover] = {}


class Subscribe(msgspec.Struct):
    channel: str = ""
    token: str = ""
    data: msgspec.Raw = ABSENT
    recover: bool = False
    epoch: str = ""
    offset: Offset = 0
    positioned: bool = False
    recoverable: bool = False
    join_leave: bool = False
    delta: str = ""
    flag: int = 0


class Unsubscribe(msgspec.Struct):
    channel: str = ""


class Publish(msgspec.Struct):
    channel: str = ""
    data: msgspec.Raw = ABSENT


class Presence(msgspec.Struct):
    channel: str = ""


class PresenceStats(msgspec.Struct):
    channel: str = ""


class Since(msgspec.Struct):
    offset: Offset = 0
    epoch: str = ""


class History(msgspec.Struct):
    channel: str = ""
    limit: int = 0
    since: Since | None = None
    reverse: bool = False


class Rpc(msgspec.Struct):
    method: str = ""
    data: msgspec.Raw = ABSENT


class Refresh(msgspec.Struct):
    token: str = ""


class SubRefresh(msgspec.Struct):
    channel: str = ""
    token: str = ""


class Send(msgspec.Struct):
    data: msgspec.Raw = ABSENT


Request = (
    Connect | Subscribe | Unsubscribe | Publish | Presence | PresenceStats | History | Rpc | Refresh | SubRefresh | Send
)


class Command(msgspec.Struct):
    """One line of a frame: an id and at most one method. With neither it is a pong."""

    id: int = 0
    connect: Connect | None = None
    subscribe: Subscribe | None = None
    unsubscribe: Unsubscribe | None = None
    publish: Publish | None = None
    presence: Presence | None = None
    presence_stats: PresenceStats | None = None
    history: History | None = None
    rpc: Rpc | None = None
    refresh: Refresh | None = None
    sub_refresh: SubRefresh | None = None
    send: Send | None = None

    def methods(self) -> int:
        """How many methods it names."""
        return (
            (self.subscribe is not None)
            + (self.publish is not None)
            + (self.connect is not None)
            + (self.unsubscribe is not None)
            + (self.presence is not None)
            + (self.presence_stats is not None)
            + (self.history is not None)
            + (self.rpc is not None)
            + (self.refresh is not None)
            + (self.sub_refresh is not None)
            + (self.send is not None)
        )

    def request(self) -> Request | None:
        """The method that was asked for, or None."""
        return (
            self.subscribe
            or self.publish
            or self.connect
            or self.unsubscribe
            or self.presence
            or self.presence_stats
            or self.history
            or self.rpc
            or self.refresh
            or self.sub_refresh
            or self.send
        )


class Undecodable(msgspec.Struct):
    """A command that has an id and can be answered, but whose content is not what it has to be."""

    id: int
    error: CommandError


class _Id(msgspec.Struct):
    id: int = 0


_decode_command = msgspec.json.Decoder(Command).decode
_decode_id = msgspec.json.Decoder(_Id).decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

PONG: Final = Command()
_MALFORMED = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


def decode_command(line: bytes) -> Command | Undecodable | Close:
    """Decode one line of a frame.

    Returns:
        The command; or what to answer it with when only its content is wrong; or what to close the connection with
        when it is no command at all. It is `PONG` for `{}`.
    """
    if line == b"{}":
        return PONG
    try:
        command = _decode_command(line)
        if not 0 <= command.id <= MAX_ID:
            return close(CloseCode.BAD_REQUEST, "id: not an unsigned 32-bit number")
        methods = command.methods()
        if methods == 0:
            return _methodless(line, command.id)
        if methods > 1:
            return _ambiguous(command.id)
    except msgspec.ValidationError as error:
        return _undecodable(line, error)
    except _MALFORMED:
        return close(CloseCode.BAD_REQUEST, "malformed JSON")
    return command


def _undecodable(line: bytes, error: msgspec.ValidationError) -> Undecodable | Close:
    try:
        ident = _decode_id(line).id
    except _MALFORMED:
        ident = 0
    if not 0 < ident <= MAX_ID:
        return close(CloseCode.BAD_REQUEST, "no command")
    return Undecodable(ident, CommandError(ErrorCode.BAD_REQUEST, describe(error)))


def _ambiguous(ident: int) -> Undecodable | Close:
    if ident == 0:
        return close(CloseCode.BAD_REQUEST, "command without id")
    return Undecodable(ident, CommandError(ErrorCode.BAD_REQUEST, "more than one method in a command"))


def _methodless(line: bytes, ident: int) -> Command | Undecodable | Close:
    """A line without a method that we know: a pong written in another way, or a method that does not exist."""
    names = [name for name in _decode_object(line) if name != "id"]
    if ident == 0:
        return close(CloseCode.BAD_REQUEST, "command without id") if names else PONG
    detail = f"{names[0][:40]!r}" if names else "no method given"
    return Undecodable(ident, CommandError(ErrorCode.METHOD_NOT_FOUND, detail))


def describe(error: msgspec.ValidationError) -> str:
    """The decoder's message with the field first: `subscribe.channel: expected str, got int`."""
    what, _, where = str(error).partition(" - at `$")
    what = what.replace("`", "")
    path = where.rstrip("`").lstrip(".")
    return f"{path}: {what[0].lower()}{what[1:]}" if path else what
