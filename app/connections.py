"""Connections that cannot be held for nothing: uvicorn itself waits for ever for a request's head, and for a client to
take its answer."""

import asyncio
import resource

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_OPEN_FILES = 65_536


class Connection(H11Protocol):
    """One client's connection, looked at every `patience_s` seconds. It is closed when all the time since the last look
    it waited for the head of a request, or for the client to take a byte of the answer. Bodies have a time limit of
    their own (`intake`)."""

    patience_s = 30.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._seen: object = None
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        state = (self.cycle, answering, self.transport.get_write_buffer_size())
        if state == self._seen and not answering:
            self.transport.abort()
            return
        self._seen = state
        self._timer = self.loop.call_later(self.patience_s, self._look)


def connection_class(patience_s: float) -> type[Connection]:
    """The class that uvicorn makes connections of, with this patience."""
    return type("Connection", (Connection,), {"patience_s": patience_s})


def allow_many_connections() -> None:
    """Each is an open file, of which a process may usually have 1,024 until it asks for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, MAX_OPEN_FILES)), hard))
