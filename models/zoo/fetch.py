"""Fetch what a named pair is made of and make the pair: the only part of the project that downloads networks.

In the cache (`models.zoo.catalog.cache_folder`):

    files/NAME.safetensors, NAME.onnx   what was made of a published file; files/NAME.pth.part is what came so far
    downloads.json                      the sha256 of every published file as it first came, and of what was made of it
    lock                                held by whoever makes a pair
    pairs/PAIR/                         pair.json and its files, as any other pair's folder

A published file may also be put into `files/` by hand, where there is no network: it is checked and used like one that
was downloaded. Nothing that is pickled in it runs (`models.zoo.checkpoints`). What is not what it should be becomes
NAME.unknown.
"""

import errno
import fcntl
import hashlib
import http.client
import json
import os
import shutil
import socket
import ssl
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import torch

from models.zoo.catalog import BUNDLED, PAIRS, PUBLISHED, Published, cache_folder, fetched_folder
from models.zoo.checkpoints import CheckpointError, keep_weights, read_pickle
from models.zoo.errors import PairError
from models.zoo.manifest import EMBEDDED, ONNX, ROLES, read_manifest
from models.zoo.pairs import load_estimator, verified, verified_int8

ATTEMPTS = 5
PAUSE_S = 1.0
"""Before the second attempt; twice as long before each further one."""
TIMEOUT_S = 30.0
CHUNK = 1 << 20
LOCAL = ("localhost", "127.0.0.1", "::1")


class FetchError(Exception):
    """The pair cannot be had; the message is one line that says why."""


class _UnavailableError(FetchError):
    """The network or the server is to blame."""


class _InterruptedError(Exception):
    """Worth another attempt."""


def fetch_pair(pair: str, *, keep: bool = False) -> Path:
    """The folder of a pair of PAIRS, made of what the cache has and the network gives.

    A pair that was made before is checked and left as it is. keep: the published files stay beside what was made of
    them. Raises FetchError.
    """
    if pair not in PAIRS:
        raise FetchError(
            f"no pair is called {pair!r}; there are {BUNDLED}, {', '.join(PAIRS)}. Networks of your own need no "
            "fetching: PAIR takes a folder with pair.json, SMALL and LARGE a file each"
        )
    folder = fetched_folder(pair)
    made = folder / "pair.json"
    try:
        with nullcontext() if made.exists() else _alone():
            if made.exists():
                _check(folder)
            elif folder.is_dir() and any(folder.iterdir()):
                raise FetchError(f"{folder} has files but no pair.json; remove it to have it made again")
            else:
                files = {network: fetch_network(network, keep=keep) for network in PAIRS[pair]}
                _make_pair(pair, folder, files)
    except OSError as error:
        raise FetchError(f"{error.filename or cache_folder()}: {error.strerror or error}") from error
    return folder


@contextmanager
def _alone() -> Iterator[None]:
    """Of several commands that fetch into this cache, one at a time gets in here."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another command is fetching, waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def fetch_network(network: str, *, keep: bool = False) -> Path:
    """The file of one network of PUBLISHED in the cache: safetensors or ONNX. Raises FetchError and OSError."""
    published = PUBLISHED[network]
    folder = cache_folder() / "files"
    folder.mkdir(parents=True, exist_ok=True)
    original, kept = folder / published.file, folder / published.kept
    record = _records().get(published.url, {})
    if kept.is_file():
        found = _sha256(kept)
        if record.get("kept") == found:
            say(f"{kept.name} is in the cache")
            return kept
        expected = f"sha256 {record['kept']} expected, {found} found" if record else "no record of it"
        say(f"{kept.name} is not what was fetched, {_set_aside(kept)}: {expected}")
    brought = original.is_file()
    if not brought:
        try:
            download(published.url, original)
        except _UnavailableError as error:
            raise FetchError(f"{error}; a file from elsewhere may be put into {folder}") from error
    digest = _sha256(original)
    expected = record.get("sha256") or published.digits
    if not digest.startswith(expected):
        done = _discard(original, brought)
        source = "as at first" if record else "as its name says"
        raise FetchError(
            f"{published.file} has another content than it should: sha256 {expected}{'' if record else '...'} "
            f"expected, {source}, {digest} found; {done}"
        )
    try:
        if published.sidecar:
            _unzip_onnx(original, kept)
        else:
            keep_weights(read_pickle(original), original, kept)
    except (CheckpointError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise FetchError(
            f"{published.file} cannot be used, {_discard(original, brought)}: {error}"
        ) from error
    _record(published, digest, _sha256(kept))
    if not keep:
        original.unlink()
    return kept


def _discard(path: Path, brought: bool) -> str:
    """Remove what was downloaded, set aside what was brought by hand. Returns what was done."""
    if brought:
        return _set_aside(path)
    path.unlink()
    return "removed"


def _set_aside(path: Path) -> str:
    """Returns what was done."""
    unknown = path.with_name(path.name + ".unknown")
    path.replace(unknown)
    return f"now {unknown.name}"


def download(url: str, path: Path) -> None:
    """Write what is at `url` to `path`, whole or not at all.

    What came before a cut stays in `path`.part and is not asked for again, in this call or a later one. Raises
    FetchError, also where the disk is too small.
    """
    part = path.with_name(path.name + ".part")
    cause = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            say(f"{cause}; attempt {attempt + 1} of {ATTEMPTS}")
            time.sleep(PAUSE_S * 2 ** (attempt - 1))
        try:
            _continue(url, part)
        except _InterruptedError as error:
            cause = str(error)
        except OSError as error:
            hint = f"; {part.name} is kept" if error.errno == errno.ENOSPC else ""
            raise FetchError(f"cannot write {part}: {error.strerror or error}{hint}") from error
        else:
            part.replace(path)
            return
    raise _UnavailableError(
        f"{url}: {cause}, {ATTEMPTS} times; what came is kept, the same command goes on from there"
    )


def _continue(url: str, part: Path) -> None:
    """Bring `part` to its full length. Raises _InterruptedError, FetchError and OSError, the last of the disk only."""
    start = part.stat().st_size if part.exists() else 0
    try:
        response = _open(url, start)
    except HTTPError as error:
        with error:
            if error.code != 416:
                raise _UnavailableError(f"{url}: the server answers {error.code} {error.reason}") from error
            # "Range not satisfiable": nothing is left, or what is there is not of this file.
            if error.headers.get("Content-Range") == f"bytes */{start}":
                return
        part.unlink(missing_ok=True)
        raise _InterruptedError(f"{part.name} was not the beginning of the file") from error
    with response:
        if response.status != 206:
            start = 0  # the server sends the file from its beginning
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink()
            raise _InterruptedError("the server sent another part of the file than was asked for")
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        if total is not None:
            _check_room(part, total - start + total)
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            _copy(response, file, start, total, part.stem)


def _open(url: str, start: int) -> http.client.HTTPResponse:
    headers = {"User-Agent": "dynpose", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    _check_scheme(url)
    try:
        response: http.client.HTTPResponse = _OPENER.open(Request(url, headers=headers), timeout=TIMEOUT_S)
    except HTTPError as error:
        if error.code in (408, 429) or error.code >= 500:
            error.close()
            raise _InterruptedError(f"the server answers {error.code} {error.reason}") from error
        raise
    except URLError as error:
        reason = error.reason
        if isinstance(reason, socket.gaierror):
            raise _UnavailableError(
                f"no way to {urlsplit(url).hostname}, is there a network? ({reason.strerror})"
            ) from error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise _UnavailableError(
                f"{url}: the server's certificate is not valid: {reason.verify_message}"
            ) from error
        raise _InterruptedError(f"no connection to {urlsplit(url).hostname}: {_line(reason)}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptedError(f"the connection broke: {_line(error)}") from error
    return response


def _copy(
    response: http.client.HTTPResponse, file: IO[bytes], start: int, total: int | None, name: str
) -> None:
    done, told = start, -1
    for chunk in _chunks(response):
        file.write(chunk)
        done += len(chunk)
        if total and done * 10 // total > told:
            told = done * 10 // total
            say(f"{name}: {done / 1e6:.0f} of {total / 1e6:.0f} MB")
    if total is not None and done < total:
        raise _InterruptedError(f"the connection was cut after {done} of {total} bytes")


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := response.read(CHUNK):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptedError(f"the connection broke: {_line(error)}") from error


def _check_room(part: Path, needed: int) -> None:
    """needed: bytes of the rest of the file, and of what is made of the whole."""
    free = shutil.disk_usage(part.parent).free
    if free < needed:
        raise FetchError(f"no space in {part.parent}: {needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free")


def _check_scheme(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOCAL):
        raise FetchError(f"{url}: only https is used")


class _HttpsOnly(HTTPRedirectHandler):
    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> Request | None:
        try:
            _check_scheme(newurl)
        except FetchError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = build_opener(_HttpsOnly)


def _unzip_onnx(archive: Path, kept: Path) -> None:
    """Take the one ONNX network out of `archive`. Raises BadZipFile."""
    with zipfile.ZipFile(archive) as content:
        members = [name for name in content.namelist() if name.endswith(".onnx")]
        if len(members) != 1:
            raise zipfile.BadZipFile(f"one ONNX network expected in it, {len(members)} found")
        temporary = kept.with_suffix(".new")
        with content.open(members[0]) as source, temporary.open("wb") as target:
            shutil.copyfileobj(source, target, CHUNK)
        temporary.replace(kept)


def _make_pair(pair: str, folder: Path, files: dict[str, Path]) -> None:
    """Make `folder` of the networks' files and the bundled detector, router and calibration scores.

    Those scores are the router's alone, whichever nets it routes to, so that they hold here as well.
    """
    manifest = json.loads((EMBEDDED / "pair.json").read_bytes()) | {"pair": pair}
    new = folder.with_name(f".{pair}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    int8 = manifest["detector"].get("int8", {})
    names = [manifest[role]["file"] for role in ("detector", "router")]
    for name in names + [int8[key] for key in ("file", "weights_file") if key in int8]:
        shutil.copyfile(EMBEDDED / name, new / name)
    scores = json.loads((EMBEDDED / manifest["calibration"]).read_bytes())
    scores["made_with"]["pair"] = pair
    (new / manifest["calibration"]).write_text(json.dumps(scores) + "\n")
    for role, network in zip(("small", "large"), PAIRS[pair], strict=True):
        path = new / (network + files[network].suffix)
        _link(files[network], path)
        sidecar = PUBLISHED[network].sidecar
        manifest[role] = {
            "file": path.name,
            "sha256": _sha256(path),
            "architecture": ONNX if sidecar else network,
        }
        if sidecar:
            path.with_suffix(".json").write_text(json.dumps(sidecar, indent=1) + "\n")
    (new / "pair.json").write_text(json.dumps(manifest, indent=1) + "\n")
    _try(new)
    new.rename(folder)


def _link(source: Path, target: Path) -> None:
    """One file for all pairs that have the network, where the file system can."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _try(folder: Path) -> None:
    """Load both nets, so that a pair which does not work is not made. Raises FetchError."""
    try:
        manifest = read_manifest(str(folder))
        for entry in (manifest.small, manifest.large):
            load_estimator(str(folder), entry, torch.device("cpu"), torch.float32)
    except PairError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise FetchError(str(error)) from error


def _check(folder: Path) -> None:
    """That the files of a pair are those that its pair.json names. Raises FetchError."""
    try:
        manifest = read_manifest(str(folder))
        for role in ROLES:
            verified(str(folder), getattr(manifest, role))
        verified_int8(str(folder), manifest.detector)
    except PairError as error:
        raise FetchError(f"{error}; remove {folder} to have it made again") from error


def _records() -> dict[str, dict[str, str]]:
    """By address: `sha256` of the published file, `kept` of what was made of it. Raises FetchError."""
    path = cache_folder() / "downloads.json"
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise FetchError(f"{path} is damaged, remove it: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(value, dict) for value in content.values()):
        raise FetchError(f"{path} is damaged, remove it: not an object of objects")
    return content


def _record(published: Published, digest: str, kept: str) -> None:
    path = cache_folder() / "downloads.json"
    records = _records() | {published.url: {"sha256": digest, "kept": kept}}
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(records, indent=1) + "\n")
    temporary.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)  # noqa: T201
