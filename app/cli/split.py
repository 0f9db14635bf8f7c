"""`dynpose split`: the share p of one server, or of each behind a DNS name."""

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from app.cli.client import Client, ServerError

PORT = 8000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What to print of one server."""

    text: str
    failed: bool = False


def addresses(name: str) -> list[str]:
    """http://ADDRESS:PORT of every address of NAME, NAME:PORT or http://NAME:PORT. Raises ServerError."""
    try:
        parts = urlsplit(name if "://" in name else f"http://{name}")
        host, port = parts.hostname or "", parts.port or PORT
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM) if host else []
    except (OSError, ValueError) as error:  # the latter also for a name that IDNA cannot encode
        raise ServerError(f"{name}: {getattr(error, 'strerror', None) or error}") from error
    hosts = sorted({str(address[0]) for *_, address in found})
    if not hosts:
        raise ServerError(f"{name}: a name is NAME or NAME:PORT")
    return [f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}" for host in hosts]


async def split(
    urls: Sequence[str], p: float | None, token: str | None, *, direct: bool = False
) -> list[Outcome]:
    """Set p of all servers at once, or show it where p is None; in the order of `urls`. direct: by no proxy."""
    return await asyncio.gather(*(_one(url, p, token, direct) for url in urls))


async def _one(url: str, p: float | None, token: str | None, direct: bool) -> Outcome:
    try:
        async with Client(url, token, direct=direct) as client:
            config = await client.config()
            if p is None:
                return Outcome(described(client.url, config))
            return Outcome(described(client.url, await client.change_config({"p": p}), before=config))
    except ServerError as error:
        return Outcome(f"dynpose: {error}", failed=True)


def described(url: str, config: dict[str, Any], before: dict[str, Any] | None = None) -> str:
    """The split in one line, and a line for each warning. before: the settings it replaces."""
    parts = [
        f"{name} {before[name]:g} -> {config[name]:g}" if before else f"{name} {config[name]:g}"
        for name in ("p", "version")
    ]
    parts += [f"{name} {_threshold(config['thresholds'][name])}" for name in ("k1", "k2")]
    parts += [f"mode {config['mode']}", f"policy {config['policy']}"]
    if before is None:
        realised = config["realised"]
        parts.append(f"large share {realised['large_share']:.3f} of {realised['people']} people")
    return "\n  warning: ".join([f"{url}: {', '.join(parts)}", *config["warnings"]])


def _threshold(value: float | None) -> str:
    """An infinite threshold is null in JSON."""
    return "none" if value is None else f"{value:.6f}"
