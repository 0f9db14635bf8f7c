"""Fetching from a server on this machine, which can be told to be a bad one."""

import fcntl
import hashlib
import io
import json
import re
import shutil
import threading
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch import nn

from models.zoo import catalog, fetch, load_pair, pair_folder, read_manifest
from models.zoo.__main__ import main
from models.zoo.catalog import PAIRS, PUBLISHED, Published
from models.zoo.fetch import FetchError, download, fetch_network, fetch_pair
from models.zoo.networks import build_network
from tests.models.zoo.onnx_nets import simcc_net

CONTENT = bytes(range(256)) * 1000


class Server:
    """`files` by path; `asked` is the Range of every request, or its path where there is none."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.cuts: list[int] = []  # bytes after which the next answers break off
        self.ignore_range = False
        self.status: list[int] = []  # instead of the next answers
        self.redirect = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        self.asked.append(asked or handler.path)
        content = self.files.get(handler.path)
        if self.status or content is None:
            return handler.send_error(self.status.pop(0) if self.status else 404)
        if self.redirect:
            handler.send_response(302)
            handler.send_header("Location", self.redirect)
            return handler.end_headers()
        start = 0
        if asked and not self.ignore_range:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
        if start and start >= len(content):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(content)}")
            handler.send_header("Content-Length", "0")
            return handler.end_headers()
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        handler.wfile.write(content[start:][: self.cuts.pop(0) if self.cuts else None])


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the networks that every pair has; to convert them takes half a minute."""
    return tmp_path_factory.mktemp("converted")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, converted: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DYNPOSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("models.zoo.pairs.cache_folder", lambda: converted)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetch, "PAUSE_S", 0.0)
    return tmp_path / "cache"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def weights_of(network: nn.Module) -> bytes:
    """A file as MMPose publishes it."""
    buffer = io.BytesIO()
    torch.save({"state_dict": network.state_dict(), "meta": {"epoch": 210}}, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def published_weights() -> bytes:
    torch.manual_seed(0)
    return weights_of(build_network("mobilenetv2"))


def publish(
    server: Server, monkeypatch: pytest.MonkeyPatch, content: bytes, network: str = "mobilenetv2"
) -> str:
    """Puts `content` up as the file of `network`. Returns the file's name."""
    name = f"{network}-{digest(content)[:8]}_20221016.pth"
    server.files[f"/{name}"] = content
    monkeypatch.setitem(PUBLISHED, network, Published(f"{server.url}/{name}", digest(content)[:8]))
    return name


def test_a_file_is_written_whole(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    server.files["/a"] = CONTENT
    download(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert "a: 0 of 0 MB" in capsys.readouterr().err


def test_a_cut_connection_goes_on_where_it_was_cut(server: Server, tmp_path: Path):
    server.files["/a"], server.cuts = CONTENT, [1000, 5000]
    download(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.asked == ["/a", "bytes=1000-", "bytes=6000-"]


def test_what_came_before_the_command_gave_up_is_used_by_the_next(server: Server, tmp_path: Path):
    server.files["/a"], server.cuts = CONTENT, [100] * 5
    with pytest.raises(FetchError, match=r"cut after 500 of 256000 bytes, 5 times; what came is kept"):
        download(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a.part").read_bytes() == CONTENT[:500]
    server.asked.clear()
    download(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.asked == ["bytes=500-"]


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path):
    server.files["/a"], server.cuts, server.ignore_range = CONTENT, [1000], True
    download(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.parametrize("left", [CONTENT, CONTENT + b"more"])
def test_a_part_that_is_already_whole_is_taken_and_a_longer_one_is_not(
    server: Server, tmp_path: Path, left: bytes
):
    server.files["/a"] = CONTENT
    (tmp_path / "a.part").write_bytes(left)
    download(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path):
    server.files["/a"], server.status = CONTENT, [503, 429]
    download(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_missing_file_is_asked_for_once(server: Server, tmp_path: Path):
    with pytest.raises(FetchError, match=r"/gone: the server answers 404 Not Found$"):
        download(f"{server.url}/gone", tmp_path / "gone")
    assert server.asked == ["/gone"]
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fetch, "ATTEMPTS", 2)
    with pytest.raises(FetchError, match=r"no connection to 127\.0\.0\.1: .*refused, 2 times"):
        download("http://127.0.0.1:9/a", tmp_path / "a")


def test_a_name_that_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def unknown(*_: object, **__: object) -> None:
        raise fetch.socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(fetch.socket, "getaddrinfo", unknown)
    with pytest.raises(FetchError, match=r"no way to nets\.invalid, is there a network\? \(Name or service"):
        download("https://nets.invalid/a", tmp_path / "a")


def test_a_disk_that_is_too_small(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    server.files["/a"] = CONTENT * 10
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1_000_000))
    with pytest.raises(FetchError, match=r"no space in .*: 5 MB needed, 1 MB free"):
        download(f"{server.url}/a", tmp_path / "a")


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path):
    server.files["/a"] = CONTENT
    with pytest.raises(FetchError, match=r"cannot write .*gone/a\.part: No such file"):
        download(f"{server.url}/a", tmp_path / "gone" / "a")


@pytest.mark.parametrize("url", ["http://example.com/a", "file:///etc/passwd", "ftp://example.com/a"])
def test_only_https_is_used(server: Server, tmp_path: Path, url: str):
    with pytest.raises(FetchError, match="only https is used"):
        download(url, tmp_path / "a")
    server.files["/a"], server.redirect = CONTENT, url
    with pytest.raises(FetchError, match=r"only https is used|is not allowed"):
        download(f"{server.url}/a", tmp_path / "a")
    assert server.asked == ["/a"]


def test_weights_are_kept_as_safetensors_without_the_pickle(
    server: Server, cache: Path, published_weights: bytes, monkeypatch: pytest.MonkeyPatch
):
    name = publish(server, monkeypatch, published_weights)
    path = fetch_network("mobilenetv2")
    assert [file.name for file in (cache / "files").iterdir()] == [path.name]
    assert path.suffix == ".safetensors"
    records = json.loads((cache / "downloads.json").read_text())
    assert records == {
        f"{server.url}/{name}": {"sha256": digest(published_weights), "kept": digest(path.read_bytes())}
    }
    monkeypatch.setattr(torch, "load", None)
    assert fetch_network("mobilenetv2") == path
    assert len(server.asked) == 1


def test_the_published_file_can_be_kept_and_brought_by_hand(
    server: Server, cache: Path, published_weights: bytes, monkeypatch: pytest.MonkeyPatch
):
    name = publish(server, monkeypatch, published_weights)
    server.files.clear()
    with pytest.raises(
        FetchError, match=rf"404 Not Found; a file from elsewhere may be put into {cache}/files"
    ):
        fetch_network("mobilenetv2")
    (cache / "files" / name).write_bytes(published_weights)
    path = fetch_network("mobilenetv2", keep=True)
    assert {file.name for file in (cache / "files").iterdir()} == {path.name, name}


def test_a_file_that_its_name_belies_is_removed(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, published_weights: bytes
):
    name = publish(server, monkeypatch, published_weights)
    server.files[f"/{name}"] = published_weights + b"!"
    found = digest(published_weights + b"!")
    with pytest.raises(FetchError) as caught:
        fetch_network("mobilenetv2")
    assert str(caught.value) == (
        f"{name} has another content than it should: sha256 {digest(published_weights)[:8]}... expected, as its name "
        f"says, {found} found; removed"
    )
    assert list((cache / "files").iterdir()) == []
    assert not (cache / "downloads.json").exists()


def test_a_file_that_is_no_longer_what_it_was_at_first_is_removed(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, published_weights: bytes
):
    """For files without digits in their name: what came first is what has to come."""
    url = f"{server.url}/weights.pth"
    server.files["/weights.pth"] = published_weights
    monkeypatch.setitem(PUBLISHED, "mobilenetv2", Published(url))
    path = fetch_network("mobilenetv2")
    path.write_bytes(b"changed")
    server.files["/weights.pth"] = weights_of(nn.Linear(1, 1))
    with pytest.raises(
        FetchError,
        match=rf"sha256 {digest(published_weights)} expected, as at first, [0-9a-f]{{64}} found; removed",
    ):
        fetch_network("mobilenetv2")
    assert [file.name for file in (cache / "files").iterdir()] == ["weights.safetensors.unknown"]


def test_files_brought_by_hand_that_are_not_the_published_ones_are_set_aside(
    server: Server,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    published_weights: bytes,
    capsys: pytest.CaptureFixture[str],
):
    name = publish(server, monkeypatch, published_weights)
    files = cache / "files"
    files.mkdir(parents=True)
    (files / name).write_bytes(b"another")
    with pytest.raises(FetchError, match=rf"found; now {name}\.unknown"):
        fetch_network("mobilenetv2")
    assert (files / f"{name}.unknown").read_bytes() == b"another"
    kept = PUBLISHED["mobilenetv2"].kept
    (files / kept).write_bytes(b"mine")
    path = fetch_network("mobilenetv2")
    assert f"{kept} is not what was fetched, now {kept}.unknown: no record of it" in capsys.readouterr().err
    assert (files / f"{kept}.unknown").read_bytes() == b"mine"
    assert path.name == kept


def test_two_commands_make_a_pair_one_after_the_other(
    tiny: str, server: Server, cache: Path, capsys: pytest.CaptureFixture[str]
):
    cache.mkdir()
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        commands = [threading.Thread(target=fetch_pair, args=(tiny,)) for _ in range(2)]
        for command in commands:
            command.start()
        for command in commands:
            command.join(0.3)
        assert server.asked == []
    for command in commands:
        command.join()
    assert "another command is fetching, waiting for it" in capsys.readouterr().err
    assert len(server.asked) == 2
    load_pair(tiny, torch.device("cpu"), torch.float32, "eager")


def test_a_changed_file_in_the_cache_is_fetched_again(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    published_weights: bytes,
    capsys: pytest.CaptureFixture[str],
):
    publish(server, monkeypatch, published_weights)
    path = fetch_network("mobilenetv2")
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert fetch_network("mobilenetv2").read_bytes() == content
    assert f"sha256 {digest(content)} expected, {digest(content[:-1])} found" in capsys.readouterr().err
    assert len(server.asked) == 2


def test_what_is_no_file_of_weights_is_removed(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch):
    publish(server, monkeypatch, b"<html>sorry</html>")
    with pytest.raises(FetchError, match=r"cannot be used, removed: .* is damaged, or not a file of weights"):
        fetch_network("mobilenetv2")
    assert list((cache / "files").iterdir()) == []


def test_damaged_records_are_named(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch):
    publish(server, monkeypatch, b"")
    cache.mkdir()
    for damage in ("{", "[]", '{"a": 1}'):
        (cache / "downloads.json").write_text(damage)
        with pytest.raises(FetchError, match=r"downloads\.json is damaged, remove it"):
            fetch_network("mobilenetv2")


@pytest.fixture
def tiny(server: Server, monkeypatch: pytest.MonkeyPatch, published_weights: bytes) -> str:
    """A pair of two small networks."""
    publish(server, monkeypatch, published_weights)
    publish(server, monkeypatch, weights_of(build_network("shufflenetv2")), "shufflenetv2")
    monkeypatch.setitem(PAIRS, "tiny", ("mobilenetv2", "shufflenetv2"))
    return "tiny"


def test_a_fetched_pair_loads_by_its_name(tiny: str, cache: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["fetch", tiny]) == 0
    said = capsys.readouterr().out
    assert "PAIR=tiny make serve" in said
    assert "calibration.train_router DATA --pair tiny" in said
    assert pair_folder(tiny) == cache / "pairs" / tiny
    pair = load_pair(tiny, torch.device("cpu"), torch.float32, "eager")
    assert pair.manifest.names()["pair"] == tiny
    assert pair.manifest.small.input_size == (192, 256)
    scores = json.loads(pair.manifest.calibration_path.read_text())
    assert scores["made_with"]["pair"] == tiny
    assert scores["made_with"]["router_sha256"] == pair.manifest.router.sha256
    assert [path.name for path in (cache / "pairs").iterdir()] == [tiny]


def test_a_pair_is_made_once_and_then_checked(tiny: str, server: Server, capsys: pytest.CaptureFixture[str]):
    folder = fetch_pair(tiny)
    assert load_pair(tiny, torch.device("cpu"), torch.float32, int8=True).manifest.detector.int8 is not None
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert fetch_pair(tiny) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert len(server.asked) == 2
    (folder / "router.safetensors").write_bytes(b"changed")
    assert main(["fetch", tiny]) == 1
    assert capsys.readouterr().err.endswith(
        "router.safetensors is not the file that pair.json names (sha256 differs); "
        f"remove {folder} to have it made again\n"
    )


def test_networks_that_do_not_fit_make_no_pair(
    tiny: str, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, published_weights: bytes
):
    publish(server, monkeypatch, weights_of(nn.Linear(1, 1)))
    with pytest.raises(FetchError, match="does not fit the network"):
        fetch_pair(tiny)
    assert list((cache / "pairs").iterdir()) == []
    publish(server, monkeypatch, published_weights)
    fetch_pair(tiny)


def test_a_folder_in_the_way_is_left_alone(tiny: str, cache: Path):
    (cache / "pairs" / tiny).mkdir(parents=True)
    fetch_pair(tiny)
    (cache / "pairs" / tiny / "pair.json").unlink()
    with pytest.raises(FetchError, match=r"has files but no pair\.json"):
        fetch_pair(tiny)


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_onnx_networks_come_out_of_their_zip_with_a_description(
    server: Server, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    content = simcc_net(tmp_path / "net.onnx", size=("batch", 256, 192)).read_bytes()
    for size in "tm":
        url = f"{server.url}/rtmpose-{size}.zip"
        server.files[f"/rtmpose-{size}.zip"] = zipped(
            {"20230831/net/end2end.onnx": content, "20230831/net/pipeline.json": b"{}"}
        )
        monkeypatch.setitem(PUBLISHED, f"rtmpose-{size}", Published(url, sidecar=catalog.RTMPOSE_SIDECAR))
    folder = fetch_pair("rtmpose-t-m")
    small = read_manifest("rtmpose-t-m").small
    assert (small.name, small.codec, small.input_size) == ("rtmpose-t", "simcc", (192, 256))
    assert small.mean == (123.675, 116.28, 103.53)
    assert small.channel_order == "RGB"
    assert (folder / "rtmpose-m.onnx").read_bytes() == content
    assert {path.suffix for path in (cache / "files").iterdir()} == {".onnx"}


@pytest.mark.parametrize(
    "content", [b"no zip", zipped({"readme": b""}), zipped({"a.onnx": b"", "b.onnx": b""})]
)
def test_a_zip_without_one_network_is_removed(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
):
    server.files["/net.zip"] = content
    published = Published(f"{server.url}/net.zip", sidecar=catalog.RTMPOSE_SIDECAR)
    monkeypatch.setitem(PUBLISHED, "rtmpose-t", published)
    with pytest.raises(FetchError, match=r"net\.zip cannot be used, removed"):
        fetch_network("rtmpose-t")
    assert list((cache / "files").iterdir()) == []


def test_errors_are_one_line(
    tiny: str,
    server: Server,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    assert main(["fetch", "r51-h32"]) == 1
    assert capsys.readouterr().err.startswith("no pair is called 'r51-h32'; there are embedded, r50-h32, ")
    server.files.clear()
    assert main(["fetch", tiny]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "404 Not Found" in said
    shutil.rmtree(cache)
    cache.write_text("in the way")
    assert main(["fetch", tiny]) == 1
    assert capsys.readouterr().err.startswith(str(cache))

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("models.zoo.__main__.fetch_pair", interrupted)
    assert main(["fetch", tiny]) == 130


def test_the_bundled_pair_needs_no_fetching(capsys: pytest.CaptureFixture[str]):
    assert main(["fetch", "embedded"]) == 0
    assert "nothing to fetch" in capsys.readouterr().out


def test_the_list_shows_what_is_there(tiny: str, cache: Path, capsys: pytest.CaptureFixture[str]):
    fetch_pair(tiny)
    capsys.readouterr()
    assert main(["fetch", "--list"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert rows["tiny"].endswith("ready")
    assert rows["m2-h32"].endswith("1 of 2 networks in the cache")
    assert rows["r50-h32"].split()[1:3] == ["resnet50", "hrnet-w32"]
    assert rows["embedded"].endswith("bundled")
    assert rows["The"] == f"The cache is {cache}."


def test_fetch_wants_a_pair_or_the_list():
    for arguments in (["fetch"], ["fetch", "r50-h32", "--list"]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
