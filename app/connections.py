"""Connections that cannot be held for nothing, and whose last answer arrives: uvicorn itself waits for ever for a
request's head and for a client to take its answer, and closes on clients that still send."""

import asyncio
import resource
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_OPEN_FILES = 65_536

RECEIVED = 65_536
"""Bytes that are taken from a connection at a time. In chunks of one byte these are 11,000, for which the event loop
stands still."""

LEAST_RATE = 32_768
"""Bytes a second in which an answer must be taken."""


class Connection(H11Protocol):
    """One client's connection, looked at every `patience_s` seconds. It is closed when all the time since the last look
    it waited for the head of a request, for the client to take the answer at `LEAST_RATE`, or to hear that this was the
    last. Between requests it may rest for uvicorn's `timeout_keep_alive`. Bodies have a time limit of their own
    (`intake`)."""

    patience_s = 30.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = cast(asyncio.Transport, Answers(transport, self))
        transport.max_size = RECEIVED  # type: ignore[attr-defined]
        self._seen: object = None
        self._taker: object = None
        self._taken = 0
        self._look()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        try:
            super().data_received(data)
        except h11.LocalProtocolError:  # no HTTP comes after an answer, and uvicorn would answer that, too
            self.transport.abort()
            return
        answered = self.cycle is not None and self.cycle.response_complete
        between = self.conn.our_state is self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        if answered and between and self.timeout_keep_alive_task is None:
            # uvicorn forgets it where the end of a body comes after the answer.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        unsent = self.transport.get_write_buffer_size()
        resting = self.timeout_keep_alive_task is not None and not unsent
        taken = cast(Answers, self.transport).given - unsent
        state = (self.cycle, answering, resting, taken)
        # An answer that nobody takes may be the last one's, while the next one is worked on.
        held = state == self._seen and not resting and (unsent or not answering)
        slow = taken - self._taken < LEAST_RATE * self.patience_s
        if held or (unsent and self._taker is self.cycle and slow):
            self.transport.abort()
            return
        self._seen = state
        self._taker, self._taken = self.cycle if unsent else None, taken
        self._timer = self.loop.call_later(self.patience_s, self._look)


class Answers:
    """A transport on which an answer's head goes out together with its body, and the last answer arrives.

    With each system call the event loop lets go of the interpreter, and may have to wait to have it again. And closed
    while a request's body still comes, the kernel would reset the connection, and the client would often lose the
    answer, such as that its body is too large: so it is closed only for writing, and the rest is let pass. The client
    closes then, or the connection's patience ends. given: bytes so far.
    """

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self._transport = transport
        self._connection = connection
        self.given = 0
        self._head = b""
        self._said = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """A head waits for what is written in the same turn of the loop."""
        if data.startswith(b"HTTP/") and not self._head:
            self._head = data
            self._connection.loop.call_soon(self._send_head)
        else:
            self._send_head(data)

    def _send_head(self, rest: bytes = b"") -> None:
        head, self._head = self._head, b""
        if head or rest:
            self.given += len(head) + len(rest)
            self._transport.write(head + rest)

    def is_closing(self) -> bool:
        return self._said or self._transport.is_closing()

    def close(self) -> None:
        """The second time at once."""
        self._send_head()
        if self._said or self._connection.conn.their_state is not h11.SEND_BODY:
            self._transport.close()
            return
        self._said = True
        self._transport.write_eof()
        self._connection.flow.resume_reading()


def connection_class(patience_s: float) -> type[Connection]:
    """The class that uvicorn makes connections of, with this patience."""
    return type("Connection", (Connection,), {"patience_s": patience_s})


def allow_many_connections() -> None:
    """Each is an open file, of which a process may usually have 1,024 until it asks for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, MAX_OPEN_FILES)), hard))
