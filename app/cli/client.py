"""What the commands ask of a running server, and how long they bear with it. The only client of HTTP in this folder."""

import asyncio
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx

RETRY_S = 1.0
MAX_RETRY_AFTER_S = 60.0
ASK_TIMEOUT_S = 5.0
POSE_TIMEOUT_S = 120.0
"""Longer than a server takes by default to answer that the deadline has passed."""

HANG_UPS = 3
"""In a row, while the server answers otherwise, until the picture is to blame. A body that is too large is refused
before all of it has come, and the refusal can be lost with the connection."""

NOT_FOR_ONE_PICTURE = (401, 403, 404, 405)
GONE_FOR_A_WHILE = (502, 503)


class ServerError(Exception):
    """The server cannot be used; one line says which and why."""


class Refused(Exception):
    """The server's word, in one line, on one picture alone."""


class Client:
    """One server. url: http://HOST:PORT, perhaps with a path. patience_s: how long the server may be away or draining
    while pictures wait for it. direct: no proxy of the environment. Raises ServerError for a url or token that cannot
    be one."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        patience_s: float = 60.0,
        direct: bool = False,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._patience_s = patience_s
        if token and not (token.isascii() and token.isprintable()):
            raise ServerError("the token has characters that a header cannot have")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            parsed = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise ServerError(f"{url}: {error}") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ServerError(f"{url}: a server is http://HOST:PORT or https://HOST")
        try:
            self._http = httpx.AsyncClient(
                base_url=self.url,
                headers=headers,
                timeout=ASK_TIMEOUT_S,
                trust_env=not direct,
                transport=transport,
            )
        except (ImportError, ValueError, httpx.InvalidURL) as error:  # a proxy of the environment
            raise ServerError(f"a proxy of the environment cannot be used: {error}") from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def version(self) -> dict[str, Any]:
        """Raises ServerError, as all that follow."""
        return self._object(await self._ask("GET", "/version"), "models")

    async def config(self) -> dict[str, Any]:
        return self._object(await self._ask("GET", "/config"), "thresholds")

    async def change_config(self, changes: Mapping[str, object]) -> dict[str, Any]:
        """PATCH /config; the settings then in force."""
        return self._object(await self._ask("PATCH", "/config", changes), "thresholds")

    async def metrics(self) -> str:
        return (await self._ask("GET", "/metrics")).text

    async def pose(self, picture: bytes, query: Mapping[str, str]) -> bytes:
        """The body of the answer to POST /pose. Waits where the server says so (429), and a while where it is away,
        draining or not ready. Raises Refused too."""
        since: float | None = None
        hang_ups = 0
        while True:
            pause_s = RETRY_S
            try:
                response = await self._http.post(
                    "/pose",
                    params=dict(query),
                    content=picture,
                    headers={"Content-Type": "image/*"},
                    timeout=POSE_TIMEOUT_S,
                )
            except httpx.TransportError as error:
                reason = _words(error)
                cut_off = isinstance(error, (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError))
                hang_ups = hang_ups + 1 if cut_off and await self._answers() else 0
                if hang_ups == HANG_UPS:
                    raise Refused(f"the server hangs up on it, it may be too large ({reason})") from error
            else:
                if response.status_code == 200:
                    return response.content
                reason, pause_s = _detail(response), _retry_after_s(response)
                if response.status_code == 429:
                    since = None
                    await asyncio.sleep(pause_s)
                    continue
                if response.status_code in NOT_FOR_ONE_PICTURE:
                    raise ServerError(f"{self.url}: {reason}")
                if response.status_code not in GONE_FOR_A_WHILE:
                    raise Refused(reason)
            now = time.monotonic()
            since = now if since is None else since
            if now - since >= self._patience_s:
                raise ServerError(f"{self.url}: {reason}, for {self._patience_s:g} s")
            await asyncio.sleep(min(pause_s, self._patience_s))

    async def _answers(self) -> bool:
        try:
            await self.version()
        except ServerError:
            return False
        return True

    async def _ask(
        self, method: str, path: str, document: Mapping[str, object] | None = None
    ) -> httpx.Response:
        try:
            response = await self._http.request(method, path, json=document)
        except httpx.TransportError as error:
            raise ServerError(f"{self.url}: {_words(error)}") from error
        if response.status_code != 200:
            raise ServerError(f"{self.url}: {_detail(response)}")
        return response

    def _object(self, response: httpx.Response, member: str) -> dict[str, Any]:
        try:
            document = response.json()
        except ValueError:
            document = None
        if not isinstance(document, dict) or member not in document:
            raise ServerError(f"{self.url}: this is no DynPose server")
        return document


def _words(error: httpx.TransportError) -> str:
    """Timeouts have no text of their own."""
    return " ".join(str(error).split()) or f"no answer ({type(error).__name__})"


def _detail(response: httpx.Response) -> str:
    """What the problem document says, or the status alone."""
    try:
        return f"{response.json()['detail']} ({response.status_code})"
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code} {response.reason_phrase}".rstrip()


def _retry_after_s(response: httpx.Response) -> float:
    try:
        return min(MAX_RETRY_AFTER_S, max(0.0, float(response.headers["retry-after"])))
    except (KeyError, ValueError):  # it may also be a date
        return RETRY_S
