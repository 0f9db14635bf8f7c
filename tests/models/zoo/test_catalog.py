from pathlib import Path

import pytest

from models.zoo import PairError, pair_folder, read_manifest
from models.zoo.catalog import BUNDLED, PAIRS, PUBLISHED, cache_folder, fetched_folder
from models.zoo.manifest import EMBEDDED
from models.zoo.networks import NETWORKS


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DYNPOSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_every_network_of_a_pair_is_published_somewhere():
    assert {network for pair in PAIRS.values() for network in pair} <= set(PUBLISHED)
    assert set(NETWORKS) <= set(PUBLISHED)
    assert BUNDLED not in PAIRS


def test_names_say_which_networks_a_pair_has():
    short = {
        "m2": "mobilenetv2",
        "s2": "shufflenetv2",
        "r50": "resnet50",
        "r101": "resnet101",
        "r152": "resnet152",
        "h32": "hrnet-w32",
        "h48": "hrnet-w48",
        "swinl": "swin-l",
        "vitl": "vitpose-l",
    }
    for pair, networks in PAIRS.items():
        if pair.startswith("rtmpose-"):
            assert networks == tuple(f"rtmpose-{size}" for size in pair.split("-")[1:])
        else:
            assert networks == tuple(short[part] for part in pair.split("-"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_have_https_addresses_and_names_of_their_own(name: str):
    published = PUBLISHED[name]
    assert published.url.startswith("https://download.openmmlab.com/mmpose/")
    assert [other.kept for other in PUBLISHED.values()].count(published.kept) == 1
    if published.sidecar:
        assert published.file.endswith(".zip")
        assert not published.digits
    else:
        assert len(published.digits) == 8
        assert f"-{published.digits}_20" in published.file


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DYNPOSE_CACHE", "~/nets")
    assert cache_folder() == Path.home() / "nets"
    monkeypatch.delenv("DYNPOSE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/dynpose")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "dynpose"


def test_a_pair_is_the_bundled_one_a_folder_or_a_fetched_one(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(cache.parent)
    assert pair_folder("embedded") == EMBEDDED
    assert pair_folder("/some/folder") == Path("/some/folder")
    fetched_folder("r50-h32").mkdir(parents=True)
    (fetched_folder("r50-h32") / "pair.json").touch()
    assert pair_folder("r50-h32") == cache / "pairs" / "r50-h32"
    Path("r50-h32").mkdir()
    assert pair_folder("r50-h32") == Path("r50-h32")


def test_a_named_pair_that_was_not_fetched_says_how(cache: Path):
    with pytest.raises(PairError) as caught:
        read_manifest("r50-h32")
    assert str(caught.value) == f"pair 'r50-h32' is not in {cache}: python -m models.zoo fetch r50-h32"
