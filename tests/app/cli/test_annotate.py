"""Pictures and videos through the command line: nothing lost, nothing done twice, the server's own results."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage
import torch
import ultralytics
from PIL import Image

from app.cli.video import Writer
from app.pipeline import ImageResult
from app.service import Service
from app.settings import Settings
from tests.app.cli.conftest import Dynpose, Live, LiveServer
from tests.app.conftest import GAP, picture_of

ASSETS = Path(ultralytics.__file__).parent / "assets"
ROOT = Path(__file__).parents[3]
ASTRONAUT = Path(skimage.__file__).parent / "data" / "astronaut.png"

Calls = dict[str, Callable[[], None]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of one, two and three people, at two depths."""
    folder = tmp_path / "photos"
    (folder / "trip").mkdir(parents=True)
    (folder / "a.png").write_bytes(picture_of([0.41]))
    (folder / "b.png").write_bytes(picture_of([0.41, 0.47]))
    (folder / "trip" / "c.JPG").write_bytes(
        picture_of([0.41, 0.47, 0.55], "JPEG", quality=100, subsampling=0)
    )
    return folder


def document(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "poses.json").read_text())
    return found


def names(out: Path) -> list[str]:
    return [image["file_name"] for image in document(out)["images"]]


def results(out: Path, name: str) -> list[dict[str, Any]]:
    """Annotations of one picture, as a server answers them for a request of this picture alone."""
    found = document(out)
    key = next(image["id"] for image in found["images"] if image["file_name"] == name)
    return [one | {"image_id": 0} for one in found["annotations"] if one["image_id"] == key]


def asked(url: str, picture: Path, query: str = "format=coco") -> Any:
    request = urllib.request.Request(
        f"{url}/pose?{query}", picture.read_bytes(), {"Content-Type": "image/jpeg"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def size_of_jpeg(path: Path) -> tuple[int, int]:
    with Image.open(path, formats=["JPEG"]) as image:
        return image.size


def film(path: Path, frames: int, fps: float = 12.5) -> Path:
    """A video of one person."""
    size = (4 * GAP, GAP)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
    frame = np.zeros((size[1], size[0], 3), np.uint8)
    frame[10:50, 10:50] = 255
    for _ in range(frames):
        writer.write(frame)
    writer.release()
    return path


def test_results_are_those_of_a_server_and_drawings_lie_as_the_pictures(
    dynpose: Dynpose, live: Live, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = dynpose("annotate", folder, "--out", out)
    assert (result.exit_code, result.stdout) == (0, f"{out}: 6 people in 3 pictures and frames\n")
    server = live()
    for name in ("a.png", "b.png", "trip/c.JPG"):
        assert results(out, name) == asked(server.url, folder / name) != []
    drawn = [out / "a.png.jpg", out / "b.png.jpg", out / "trip" / "c.JPG"]
    assert {size_of_jpeg(path) for path in drawn} == {(640, 640), (640, 320), (640, 213)}
    assert {path for path in out.rglob("*") if path.is_file()} == {
        *drawn,
        out / "poses.json",
        out / "poses.jsonl",
    }
    found = document(out)
    sizes = [(image["id"], image["width"], image["height"]) for image in found["images"]]
    assert sizes == [(1, GAP, GAP), (2, 2 * GAP, GAP), (3, 3 * GAP, GAP)]
    assert found["failed"] == []
    assert found["categories"][0]["name"] == "person"


def test_a_running_server_gives_the_same_as_this_process(
    dynpose: Dynpose, live: Live, looked_at: Counter[str], folder: Path, tmp_path: Path
) -> None:
    options = ("--p", 0.2, "--min-score", 0.94)
    assert dynpose("annotate", folder, "--out", tmp_path / "here", *options).exit_code == 0
    server = live()
    looked_at.clear()
    result = dynpose("annotate", folder, "--out", tmp_path / "there", "--server", server.url, *options)
    assert result.exit_code == 0
    assert looked_at["detect"] == 3
    here, there = document(tmp_path / "here"), document(tmp_path / "there")
    assert here | {"info": None} == there | {"info": None}
    assert here["info"]["made_with"].items() >= there["info"]["made_with"].items()
    assert len(here["annotations"]) == 3  # of each picture the one person scored 0.95
    for name in ("a.png.jpg", "trip/c.JPG"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_real_photographs_give_what_the_server_gives(
    dynpose: Dynpose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {"DEVICE": "cpu", "PRECISION": "fp32", "RUNTIME": "eager", "MODE": "fixed"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("app.service.warm", lambda *_: None)
    photos = [ASSETS / "bus.jpg", ASSETS / "zidane.jpg", ASTRONAUT]
    out = tmp_path / "out"
    assert dynpose("annotate", *photos, "--out", out).exit_code == 0
    server = LiveServer(Service(Settings(_env_file=None)))
    try:
        for photo in photos:
            ours, theirs = results(out, photo.name), asked(server.url, photo)
            assert len(ours) == len(theirs) >= 1
            for one, other in zip(ours, theirs, strict=True):
                # Batches are composed by chance, and with them the last digits.
                assert one["keypoints"] == pytest.approx(other["keypoints"], abs=0.05)
                assert one["bbox"] == pytest.approx(other["bbox"], abs=0.05)
                assert one["score"] == pytest.approx(other["score"], abs=1e-3)
    finally:
        server.stop()
    lines = (out / "poses.jsonl").read_text().splitlines()[1:]
    assert {person["route"] for line in lines for person in json.loads(line)["people"]} <= {"easy", "hard"}
    assert size_of_jpeg(out / "astronaut.png.jpg") == (640, 640)


def test_what_is_done_is_not_done_again(
    dynpose: Dynpose, looked_at: Counter[str], folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert dynpose("annotate", folder, "--out", out).exit_code == 0
    before = document(out)
    assert looked_at["detect"] == 3
    assert dynpose("annotate", folder, "--out", out).exit_code == 0
    assert looked_at["detect"] == 3
    assert document(out) == before
    (folder / "d.png").write_bytes(picture_of([0.41]))
    (folder / "a.png").write_bytes(picture_of([0.41, 0.41]))
    assert dynpose("annotate", folder, "--out", out).exit_code == 0
    assert looked_at["detect"] == 5  # the new one and the changed one
    assert len(results(out, "a.png")) == 2
    assert names(out) == ["a.png", "b.png", "d.png", "trip/c.JPG"]
    (out / "b.png.jpg").unlink()
    before = document(out)
    assert dynpose("annotate", folder, "--out", out).exit_code == 0
    assert (out / "b.png.jpg").exists()
    assert looked_at["detect"] == 6
    assert document(out) == before


def test_drawings_of_another_run_are_no_sources(
    dynpose: Dynpose,
    calls: Calls,  # noqa: ARG001
    folder: Path,
) -> None:
    assert dynpose("annotate", folder, "--out", folder / "first").exit_code == 0
    (folder / "theirs").mkdir()
    (folder / "theirs" / "poses.jsonl").write_text("of another program\n")
    (folder / "theirs" / "d.png").write_bytes(picture_of([0.41]))
    assert dynpose("annotate", folder, "--out", folder / "second").exit_code == 0
    assert names(folder / "second") == ["a.png", "b.png", "theirs/d.png", "trip/c.JPG"]


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT interrupts Python, also where the tests were started in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_leaves_what_is_done_and_the_next_run_goes_on(
    dynpose: Dynpose, calls: Calls, looked_at: Counter[str], folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def interrupt() -> None:
        looked_at["detect"] += 1
        if looked_at["detect"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    calls["detect"] = interrupt
    result = dynpose("annotate", folder, "--out", out, "--jobs", 1)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1].startswith("dynpose: stopped; what is done is in")
    assert 1 <= len(names(out)) < 3
    looked_at.clear()
    looked_at["detect"] = 2
    done = len(names(out))
    assert dynpose("annotate", folder, "--out", out).exit_code == 0
    assert names(out) == ["a.png", "b.png", "trip/c.JPG"]
    assert looked_at["detect"] == 2 + 3 - done


def test_a_line_that_was_cut_off_is_done_again(
    dynpose: Dynpose, looked_at: Counter[str], folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    dynpose("annotate", folder, "--out", out)
    before = document(out)
    lines = out / "poses.jsonl"
    os.truncate(lines, lines.stat().st_size - 10)
    looked_at.clear()
    assert dynpose("annotate", folder, "--out", out).exit_code == 0
    assert looked_at["detect"] == 1
    assert document(out) == before
    assert all(json.loads(line) for line in lines.read_text().splitlines())


def test_what_cannot_be_read_is_named_and_the_others_are_done(
    dynpose: Dynpose, calls: Calls, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (folder / "bad.jpg").write_bytes(b"no picture")
    (folder / "cut.png").write_bytes(picture_of([0.41])[:60])
    (folder / "dead.png").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.png")
    (folder / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 40)
    result = dynpose("annotate", folder, "--out", out)
    assert result.exit_code == 1
    assert names(out) == ["a.png", "b.png", "trip/c.JPG"]
    failed = {one["file_name"]: one["error"] for one in document(out)["failed"]}
    assert set(failed) == {"bad.jpg", "cut.png", "dead.png", "phone.HEIC", "pipe.png"}
    assert "JPEG" in failed["phone.HEIC"]
    for name, reason in failed.items():
        assert f"failed: {name}: {reason}" in result.stderr
    assert result.stdout == f"{out}: 6 people in 3 pictures and frames, 5 failed\n"
    (folder / "bad.jpg").write_bytes(picture_of([0.41], "JPEG"))
    calls["detect"] = lambda: None
    again = dynpose("annotate", folder, "--out", out)
    assert again.exit_code == 1
    assert "bad.jpg" in names(out)


def test_a_stage_that_fails_for_one_picture_fails_that_picture(
    dynpose: Dynpose, calls: Calls, folder: Path, tmp_path: Path
) -> None:
    asked: Counter[str] = Counter()

    def fail() -> None:
        asked["large"] += 1
        if asked["large"] <= 2:
            raise RuntimeError("broken")

    calls["large"] = fail
    result = dynpose("annotate", folder, "--out", tmp_path / "out", "--jobs", 1)
    assert result.exit_code == 1
    assert len(names(tmp_path / "out")) == 2
    assert dynpose("annotate", folder, "--out", tmp_path / "out").exit_code == 0
    assert len(names(tmp_path / "out")) == 3


def test_pictures_are_upright(dynpose: Dynpose, calls: Calls, tmp_path: Path) -> None:  # noqa: ARG001
    turned = Image.Exif()
    turned[0x0112] = 6
    photo = tmp_path / "turned.jpg"
    Image.new("RGB", (40, 20)).save(photo, exif=turned)
    assert dynpose("annotate", photo, "--out", tmp_path / "out").exit_code == 0
    [image] = document(tmp_path / "out")["images"]
    assert (image["width"], image["height"]) == (20, 40)
    assert size_of_jpeg(tmp_path / "out" / "turned.jpg") == (320, 640)


def test_names_may_be_odd_and_links_go_in_circles(
    dynpose: Dynpose, looked_at: Counter[str], tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "[red]\n\x1b.png").write_bytes(picture_of([0.41]))
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).write_bytes(picture_of([0.41]))
    (folder / "bad\x1b[2J.png").write_bytes(b"")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "x.png").write_bytes(picture_of([0.41]))
    (folder / "linked").symlink_to(elsewhere)
    (folder / "again").symlink_to(elsewhere)
    (folder / "circle").symlink_to(folder)
    (folder / "y.png").symlink_to(elsewhere / "x.png")
    out = folder / "out"  # whose drawings are no sources
    for _ in range(2):
        result = dynpose("annotate", folder, "--out", out)
        assert result.exit_code == 1
        assert "\x1b" not in result.stderr
        assert "failed: bad\\x1b[2J.png: the picture is empty" in result.stderr
        assert names(out) == ["[red]\n\x1b.png", "again/x.png", "caf\\xe9.png", "y.png"]
    assert looked_at["detect"] == 4
    assert (os.fsencode(out) + b"/caf\xe9.png.jpg") in {
        os.fsencode(path) for path in out.iterdir() if path.is_file()
    }


def test_several_sources_keep_their_names_apart(dynpose: Dynpose, calls: Calls, folder: Path, tmp_path: Path):  # noqa: ARG001
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    out = tmp_path / "out"
    assert dynpose("annotate", folder, other, folder / "a.png", "--out", out).exit_code == 0
    assert names(out) == sorted(
        [
            "a.png",
            *(f"{top}/{name}" for top in ("other", "photos") for name in ("a.png", "b.png", "trip/c.JPG")),
        ]
    )
    result = dynpose("annotate", folder / "a.png", other / "a.png", "--out", tmp_path / "both")
    assert result.exit_code == 2
    assert "would have the same name in OUT" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--p", "0.3"], "has results of another kind (p was 0.5, now 0.3)"),
        (["--estimator", "large"], "(estimator was auto, now large)"),
    ],
)
def test_results_of_other_options_are_not_mixed(
    dynpose: Dynpose,
    calls: Calls,  # noqa: ARG001
    folder: Path,
    tmp_path: Path,
    arguments: list[str],
    says: str,
) -> None:
    out = tmp_path / "out"
    dynpose("annotate", folder, "--out", out)
    before = (out / "poses.jsonl").read_bytes()
    result = dynpose("annotate", folder, "--out", out, *arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert (out / "poses.jsonl").read_bytes() == before


@pytest.mark.parametrize(("name", "value"), [("MIN_SCORE", "0.94"), ("P", "0.2"), ("FLIP_TEST", "true")])
def test_results_of_other_settings_are_not_mixed(
    dynpose: Dynpose,
    calls: Calls,  # noqa: ARG001
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
) -> None:
    out = tmp_path / "out"
    dynpose("annotate", folder, "--out", out)
    monkeypatch.setenv(name, value)
    result = dynpose("annotate", folder, "--out", out)
    assert result.exit_code == 2
    assert f"has results of another kind ({name.lower()} was" in result.stderr


@pytest.mark.parametrize(
    ("sources", "out", "says"),
    [
        (["bus.jpg"], ".", "bus.jpg would be drawn over itself"),
        (["holiday", "other"], ".", "holiday/bus.jpg would be drawn over itself"),
        (["holiday"], "other", "other/bus.jpg is there already"),
    ],
)
def test_no_file_of_the_users_is_overwritten(
    dynpose: Dynpose,
    calls: Calls,  # noqa: ARG001
    tmp_path: Path,
    sources: list[str],
    out: str,
    says: str,
) -> None:
    photos = [tmp_path / "bus.jpg", tmp_path / "holiday" / "bus.jpg", tmp_path / "other" / "bus.jpg"]
    for path in photos:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture_of([0.41], "JPEG"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = dynpose("annotate", *sources, "--out", out)
    assert result.exit_code == 2
    assert says in result.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("calls")
def test_an_output_folder_whose_name_is_no_text_is_written(folder: Path, tmp_path: Path) -> None:
    out = os.fsencode(tmp_path) + b"/out-\xff"
    command = [sys.executable, "-m", "app.cli", "annotate", folder, "--out", out, "--estimator", "small"]
    (folder / "a.png").write_bytes(b"no picture")  # so that no network is needed
    for name in ("b.png", "trip/c.JPG"):
        (folder / name).unlink()
    done = subprocess.run(
        command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"}, cwd=ROOT
    )
    assert (done.returncode, done.stdout.decode()) == (
        1,
        f"{tmp_path}/out-\\udcff: 0 people in 0 pictures and frames, 1 failed\n",
    )


def test_another_programs_file_is_left_alone(dynpose: Dynpose, calls: Calls, folder: Path, tmp_path: Path):  # noqa: ARG001
    out = tmp_path / "out"
    out.mkdir()
    for text in ("mine", "mine\nand more\n", '{"other": 1}\n'):
        (out / "poses.jsonl").write_text(text)
        result = dynpose("annotate", folder, "--out", out)
        assert result.exit_code == 2
        assert "is another program's file" in result.stderr
        assert (out / "poses.jsonl").read_text() == text


def test_a_forced_estimator_needs_no_router(
    dynpose: Dynpose, looked_at: Counter[str], folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert dynpose("annotate", folder, "--out", out, "--estimator", "large").exit_code == 0
    assert (looked_at["score"], looked_at["small"], looked_at["large"]) == (0, 0, 6)
    people = json.loads((out / "poses.jsonl").read_text().splitlines()[1])["people"]
    assert people[0]["route"] is None
    assert "difficulty" not in people[0]


@pytest.mark.parametrize("every", [1, 3])
def test_a_video_is_drawn_whole_and_looked_at_as_often_as_asked(
    dynpose: Dynpose, looked_at: Counter[str], tmp_path: Path, every: int
) -> None:
    clip = film(tmp_path / "clip.avi", 7)
    out = tmp_path / "out"
    for _ in range(2):
        assert dynpose("annotate", clip, "--out", out, "--every", every).exit_code == 0
        looked = list(range(0, 7, every))
        assert looked_at["detect"] == len(looked)
        assert [image["frame"] for image in document(out)["images"]] == looked
        assert {image["file_name"] for image in document(out)["images"]} == {"clip.avi"}
        assert len(document(out)["annotations"]) == len(looked)
    video = cv2.VideoCapture(str(out / "clip.avi.mp4"))
    assert video.get(cv2.CAP_PROP_FPS) == 12.5
    frames = []
    while (read := video.read())[0]:
        frames.append(read[1])
    assert len(frames) == 7
    assert all(np.ptp(frame.astype(int), axis=2).max() > 60 for frame in frames)  # colour, so it is drawn
    assert {path.name for path in out.iterdir()} == {"clip.avi.mp4", "poses.json", "poses.jsonl"}


def test_a_video_of_slow_motion_is_drawn_at_its_speed(tmp_path: Path) -> None:
    """MPEG-4 has no more than 65,535 ticks a second."""
    writer = Writer(tmp_path / "drawn.mp4", 119.883)
    with writer:
        writer.add(torch.zeros(48, 64, 3, dtype=torch.uint8), ImageResult())
    assert cv2.VideoCapture(str(tmp_path / "drawn.mp4")).get(cv2.CAP_PROP_FPS) == pytest.approx(119.88)


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupted_video_goes_on_where_it_was(
    dynpose: Dynpose, calls: Calls, looked_at: Counter[str], tmp_path: Path
) -> None:
    clip = film(tmp_path / "clip.mp4", 12)
    out = tmp_path / "out"

    def interrupt() -> None:
        looked_at["detect"] += 1
        if looked_at["detect"] == 6:
            os.kill(os.getpid(), signal.SIGINT)

    calls["detect"] = interrupt
    assert dynpose("annotate", clip, "--out", out, "--jobs", 1).exit_code == 130
    done = len(names(out))
    assert 4 <= done <= 6
    assert {path.name for path in out.iterdir()} == {"poses.json", "poses.jsonl"}
    looked_at["detect"] = 100
    assert dynpose("annotate", clip, "--out", out, "--jobs", 1).exit_code == 0
    assert looked_at["detect"] == 100 + 12 - done
    assert len(names(out)) == 12


def test_a_video_through_a_server_and_one_that_is_none(dynpose: Dynpose, live: Live, tmp_path: Path) -> None:
    film(tmp_path / "clip.mp4", 3)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    server, out = live(), tmp_path / "out"
    given = (tmp_path / "clip.mp4", tmp_path / "broken.mp4", "--out", out, "--server", server.url)
    result = dynpose("annotate", *given)
    assert result.exit_code == 1
    assert "failed: broken.mp4: it is neither a picture nor a video that OpenCV reads" in result.stderr
    assert names(out) == ["clip.mp4"] * 3


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [("P", "7", "P: Input should be"), ("PAIR", "/nowhere", "/nowhere")],
)
def test_settings_that_make_no_sense_end_it_in_one_line(
    dynpose: Dynpose,
    calls: Calls,  # noqa: ARG001
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    says: str,
) -> None:
    monkeypatch.setenv(name, value)
    result = dynpose("annotate", folder, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith("dynpose: ")
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("sources", [["nowhere.jpg"], ["empty"]])
def test_sources_that_are_none_end_it_in_one_line(
    dynpose: Dynpose,
    calls: Calls,  # noqa: ARG001
    tmp_path: Path,
    sources: list[str],
) -> None:
    (tmp_path / "empty").mkdir()
    result = dynpose("annotate", *sources, "--out", "out")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert not (tmp_path / "out").exists()


def test_a_token_that_a_server_wants_ends_it_in_one_line(
    dynpose: Dynpose, live: Live, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, out = live(pose_token="secret"), tmp_path / "out"
    result = dynpose("annotate", folder, "--out", out, "--server", server.url)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(f"dynpose: {server.url}: this needs Authorization")
    monkeypatch.setenv("DYNPOSE_TOKEN", "secret")
    assert dynpose("annotate", folder, "--out", out, "--server", server.url).exit_code == 0
    assert len(names(out)) == 3


def test_a_server_without_room_for_all_in_flight_gets_them_one_after_the_other(
    dynpose: Dynpose, live: Live, calls: Calls, folder: Path, tmp_path: Path
) -> None:
    calls["detect"] = lambda: time.sleep(0.1)
    server = live(max_pending_pictures=1)
    result = dynpose("annotate", folder, "--out", tmp_path / "out", "--server", server.url, "--jobs", 3)
    assert result.exit_code == 0
    assert len(names(tmp_path / "out")) == 3
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        refused = re.search(rb'dynpose_rejected_total{reason="overloaded"} (\S+)', answer.read())
    assert refused is not None
    assert float(refused[1]) >= 2


def test_two_runs_do_not_write_to_one_folder(dynpose: Dynpose, calls: Calls, folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    second = []

    def another() -> None:
        from app.cli.ledger import Ledger, LedgerError

        with pytest.raises(LedgerError, match="another dynpose"):
            Ledger(out, {})
        second.append(True)

    calls["detect"] = another
    assert dynpose("annotate", folder, "--out", out).exit_code == 0
    assert len(second) == 3
