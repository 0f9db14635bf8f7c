"""`python -m app`: serve. Exit code 0 after an orderly end, 1 when the service cannot start."""

import gc
import os
import signal

gc.disable()  # nothing of what is imported is garbage, and to look for some takes half a second
if __name__ == "__main__":
    # Until uvicorn has a handler of its own: the first process of a container does not hear SIGTERM without one.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

import contextlib
import ctypes
import logging
import sys
import warnings

from app import logs
from app.config import ConfigError
from app.connections import allow_many_connections
from app.crew import leave
from app.main import create_app
from app.server import Server
from app.service import Service
from app.settings import SettingsError, load_settings
from models.zoo import PairError

gc.freeze()
gc.enable()

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of mallopt(3)


def spare_memory() -> None:
    """glibc gives each thread memory of its own, of which every one keeps what its largest picture needed: with two
    such arenas a loaded service takes 80 MB less. And with each large block that is freed it learns to keep larger
    ones: 40 to 80 MB less without that. Elsewhere nothing."""
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_ARENA_MAX, 2)
        mallopt(M_MMAP_THRESHOLD, 4 << 20)
        mallopt(M_TRIM_THRESHOLD, 1 << 20)


def main() -> int:
    """Run until SIGTERM; returns the exit code."""
    # Pillow warns of each kind of damage in a client's picture, and Python remembers every such text for ever.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.captureWarnings(True)
    try:
        settings = load_settings()
        logging.basicConfig(level=logging.INFO, handlers=[logs.handler(settings.log_format, sys.stderr)])
        service = Service(settings)
    except (SettingsError, PairError, ConfigError, ValueError) as error:
        print(f"dynpose cannot start: {error}", file=sys.stderr)
        return 1
    server = Server(
        create_app(service),
        host=settings.host,
        port=settings.port,
        on_drain=service.drain,
        drain_delay_s=settings.drain_delay_s,
        grace_s=settings.shutdown_grace_s,
        patience_s=settings.body_timeout_s,
        keep_alive_s=settings.keep_alive_s,
    )
    allow_many_connections()
    spare_memory()

    def stop_on_failure() -> None:
        server.should_exit = True

    service.on_failure = stop_on_failure
    try:
        server.run()
    except (KeyboardInterrupt, SystemExit):  # the latter where the port is taken, which uvicorn has logged
        return 1
    if service.failure is not None:
        print(f"dynpose cannot start: {service.failure}", file=sys.stderr)
        return 1
    return 0 if server.started else 1


if __name__ == "__main__":
    leave(main())
