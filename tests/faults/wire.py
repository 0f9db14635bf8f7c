"""Requests as bytes on a socket, for clients that do not behave."""

import json
import socket
from typing import Any


def head(length: int, media_type: str = "image/png", path: str = "/pose") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {media_type}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def connect(port: int, *, window: int | None = None) -> socket.socket:
    """window: bytes that the kernel takes for a client that does not read."""
    client = socket.socket()
    if window is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    client.settimeout(60)
    try:
        client.connect(("127.0.0.1", port))
    except OSError:
        client.close()
        raise
    return client


def answer(client: socket.socket) -> tuple[int, Any]:
    """(status, document) of the next answer; (0, None) where the connection ends without one."""
    with client.makefile("rb") as file:
        try:
            first = file.readline()
            if not first:
                return 0, None
            length = 0
            while (line := file.readline().strip()) != b"":
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            return int(first.split()[1]), json.loads(file.read(length))
        except ConnectionResetError:
            return 0, None
