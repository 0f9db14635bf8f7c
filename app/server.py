"""uvicorn with a shutdown that loses nothing: first refuse, then close the port, then answer what was admitted."""

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import cast

import uvicorn
from fastapi import FastAPI

from app.connections import Connection, connection_class

log = logging.getLogger("dynpose.server")

CLOSE = (b"connection", b"close")
LINGER_S = 0.25
"""Seconds that connections outlive the port, so that a request already on its way is refused rather than reset."""


class Server(uvicorn.Server):
    """SIGTERM and SIGINT are handled here: uvicorn would close its listeners before the application hears of it, and
    end the process by the signal.

    on_drain: called at the first signal, after which the application answers 503. drain_delay_s: seconds until the port
    is closed, for a load balancer to notice. grace_s: seconds that admitted requests then have; what they cut off is
    logged. A second signal ends the process at once. patience_s: between two looks at whether a connection gets on.
    keep_alive_s: seconds that it may rest between requests.
    """

    def __init__(
        self,
        app: FastAPI,
        *,
        host: str,
        port: int,
        on_drain: Callable[[], None],
        drain_delay_s: float,
        grace_s: int,
        patience_s: float,
        keep_alive_s: int,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                workers=1,  # else uvicorn itself reads WEB_CONCURRENCY, and fails on an empty one
                loop="asyncio",  # whatever else is installed: what is measured is what is served
                http=connection_class(patience_s),
                ws="none",  # whatever else is installed, again
                timeout_keep_alive=keep_alive_s,
                timeout_graceful_shutdown=grace_s,
                access_log=False,
                log_config=None,  # what uvicorn has to say goes where the rest goes
                server_header=False,
            )
        )
        self._on_drain = on_drain
        self._drain_delay_s = drain_delay_s
        self._close_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """The signal handler."""
        if self._close_at is not None:
            self.force_exit = self.should_exit = True
            return
        self._close_at = time.monotonic() + self._drain_delay_s
        self._on_drain()
        log.info("draining: the port closes in %g s", self._drain_delay_s)

    async def on_tick(self, counter: int) -> bool:
        """uvicorn's ten looks a second at whether to go on."""
        over = await super().on_tick(counter)
        if self._close_at is None:
            return over
        # A client that is told so sends no further request into a connection that is about to be closed. uvicorn makes
        # a new list every second; requests keep that of their own.
        connections = cast(set[Connection], self.server_state.connections)
        begun = [each.cycle.default_headers for each in connections if each.cycle is not None]
        for headers in (self.server_state.default_headers, *begun):
            if CLOSE not in headers:
                headers.append(CLOSE)
        return over or time.monotonic() >= self._close_at

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the port, answer who is connected, end the application."""
        for server in self.servers:
            server.close()
        if not self.force_exit:
            await asyncio.sleep(LINGER_S)
        await super().shutdown(sockets)
