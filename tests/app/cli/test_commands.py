"""The program itself."""

import os
import shutil
import signal
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from app.cli.__main__ import EXTRA, main
from models.zoo.manifest import EMBEDDED
from tests.app.cli.conftest import Dynpose
from tests.process import PHOTO, until

LONG = 60
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("missing", ["typer", "rich", "httpx"])
def test_without_the_extra_one_line_says_what_to_install(missing: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['dynpose', '--help']; "
        "from app.cli.__main__ import main; sys.exit(main())"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("dynpose: ")
    assert "pip install httpx rich typer" in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_the_installed_command_is_the_one_that_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["dynpose"].partition(":")
    assert getattr(import_module(module), function).__doc__ == main.__doc__
    assert set(project["optional-dependencies"]["cli"]) == set(EXTRA)
    assert set(EXTRA) <= set(project["optional-dependencies"]["dev"])


def is_read(fifo: Path) -> bool:
    """Whether somebody waits for what comes out of `fifo`. It is kept open, so that they wait on."""
    try:
        os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return False
    return True


def test_ctrl_c_while_networks_are_loaded_waits_for_none_of_them(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(EMBEDDED, tmp_path / "pair"))
    (folder / "detector.safetensors").unlink()
    os.mkfifo(folder / "detector.safetensors")
    (tmp_path / "bus.jpg").write_bytes(PHOTO)
    run = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "annotate", tmp_path / "bus.jpg", "--out", tmp_path / "out"],
        cwd=ROOT,
        env=os.environ | {"PAIR": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell's background jobs ignore it
    )
    assert until(lambda: is_read(folder / "detector.safetensors"), LONG)
    run.send_signal(signal.SIGINT)
    assert run.wait(LONG) == 130


def test_help_comes_without_loading_the_networks_libraries() -> None:
    code = (
        "import sys; from app.cli.commands import app; app(['split', '--help'], standalone_mode=False); "
        "sys.exit('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "--all-pods" in run.stdout


def test_the_help_of_annotate_says_the_format(dynpose: Dynpose) -> None:
    text = " ".join(dynpose("annotate", "--help").stdout.split())
    for part in ("OUT/poses.json has", "format=coco", '"images"', "file_name", "OUT/poses.jsonl"):
        assert part in text
