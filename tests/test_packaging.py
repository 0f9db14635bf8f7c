"""What a fresh machine installs: the lock files, the make targets and the container."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
import torchvision
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FIRST_STEP = {"torch", "torchvision", "triton"}


def pins(name: str) -> dict[str, str]:
    """Package -> release of one file in requirements/."""
    found = re.findall(
        r"^([A-Za-z0-9._-]+)==([^\s\\]+)", (ROOT / "requirements" / name).read_text(), re.MULTILINE
    )
    return {canonicalize_name(package): release for package, release in found}


def asked_for(*, dev: bool) -> list[Requirement]:
    lines = list(PROJECT["project"]["dependencies"])
    if dev:
        lines += PROJECT["project"]["optional-dependencies"]["dev"]
    return [Requirement(line) for line in lines]


def recipe(target: str) -> str:
    """The lines make would run for `target`, as written."""
    found = re.search(
        rf"^{re.escape(target)}:[^\n]*\n((?:\t[^\n]*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    assert found, f"Makefile has no recipe for {target}"
    return found.group(1)


def test_torch_and_torchvision_are_builds_that_work_together() -> None:
    """A CPU torch beside a CUDA torchvision imports well and fails only here."""
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)
    assert kept.tolist() == [0, 2]


@pytest.mark.parametrize(("lock", "dev"), [("serve.txt", False), ("dev.txt", True)])
def test_every_dependency_of_the_project_is_locked_to_a_release_it_allows(lock: str, dev: bool) -> None:
    locked = pins(lock) | pins("torch.txt")
    for requirement in asked_for(dev=dev):
        assert locked[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("lock", ["serve.txt", "dev.txt"])
def test_a_lock_neither_holds_nor_breaks_what_the_first_step_installs(lock: str) -> None:
    assert not {name for name in pins(lock) if name in FIRST_STEP or name.startswith("cuda-")}


def test_tests_run_on_the_releases_that_serve() -> None:
    serving, testing = pins("serve.txt"), pins("dev.txt")
    assert {name: testing.get(name) for name in serving} == serving


@pytest.mark.parametrize("lock", ["serve.txt", "dev.txt"])
def test_every_locked_release_has_a_hash_and_no_source_of_its_own(lock: str) -> None:
    text = (ROOT / "requirements" / lock).read_text()
    entries = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(entries) == len(pins(lock))
    assert all("--hash=sha256:" in entry for entry in entries)
    assert not re.search(r"^\s*--(?!hash)|://|@ ", text, re.MULTILINE)


def test_what_is_installed_here_is_what_is_locked() -> None:
    locked = pins("serve.txt") | pins("torch.txt")
    installed = {name: metadata.version(name) for name in locked}
    assert {name: release.split("+")[0] for name, release in installed.items()} == locked


def test_continuous_integration_checks_and_tests_through_make() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert "set -euo pipefail" in lines
    assert [line for line in lines if line.startswith("make ")] == ["make lint", "make test"]


def test_an_audit_of_dependencies_reports_and_never_fails_or_delays_the_build() -> None:
    (line,) = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if "make audit" in line]
    assert re.fullmatch(r"timeout \d+ make audit \|\| echo .*", line)
    locks = re.findall(r"-r requirements/(\w+)\.txt", recipe("audit"))
    assert pins("serve.txt").items() <= pins("dev.txt").items()
    assert locks == ["torch", "dev"]


def test_make_leaves_a_stamp_only_after_its_step_has_succeeded() -> None:
    for stamp in ("torch", "serve", "dev"):
        lines = recipe(f"$(VENV)/{stamp}.stamp").strip().splitlines()
        assert [line.strip() for line in lines if "touch" in line] == ["touch $@"]
        assert lines[-1].strip() == "touch $@"


def own_modules_run_by_make() -> list[str]:
    modules = set(re.findall(r"\$\(RUN\) -m ([a-z_.]+)", (ROOT / "Makefile").read_text()))
    return sorted(modules - {"pip", "pytest", "ruff", "mypy"})


@pytest.mark.parametrize("module", own_modules_run_by_make())
def test_every_module_that_make_runs_exists(module: str) -> None:
    path = ROOT.joinpath(*module.split("."))
    assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def test_the_licence_is_the_one_the_project_names() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["project"]["license"] == "AGPL-3.0-or-later"
    assert "GNU AFFERO GENERAL PUBLIC LICENSE" in text
    assert "Version 3, 19 November 2007" in text


def container() -> str:
    return (ROOT / "Dockerfile").read_text()


def test_what_the_container_copies_exists_and_reaches_the_build() -> None:
    taken = (ROOT / ".dockerignore").read_text().split()
    lines = re.findall(r"^COPY (.+)$", container(), re.MULTILINE)
    copied = {source for line in lines for source in line.split()[:-1]}
    assert {"app", "models", "calibration", "requirements", "LICENSE"} <= copied
    assert taken[0] == "*"
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in taken


def test_the_container_installs_as_make_does() -> None:
    text = " ".join(container().split())
    first = text.index("-r requirements/torch.txt")
    second = text.index("install --no-cache-dir --no-deps --require-hashes -r requirements/serve.txt")
    assert first < second
    assert "TORCH_INDEX" in text[:first]


def test_the_container_runs_as_nobody_special_and_hears_signals() -> None:
    user = re.findall(r"^USER (.+)$", container(), re.MULTILINE)
    assert user
    assert user[-1] not in {"root", "0"}
    # Exec form: python is process 1 and gets SIGTERM itself, so that a stop drains.
    assert re.search(r'^CMD \["python", "-m", "app"\]$', container(), re.MULTILINE)
    assert "/healthz" in container()


PAGES = [
    str(path)
    for pattern in ("*.md", "[!.]*/*.md", "[!.]*/*/*.md")
    for path in sorted(page.relative_to(ROOT) for page in ROOT.glob(pattern))
    if path.parts[0] != "runs"
]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_to_a_file(page: str) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / page).read_text())
    assert {link for link in links if not (ROOT / page).parent.joinpath(link).exists()} == set()


def test_every_make_target_of_the_readme_exists() -> None:
    readme = (ROOT / "README.md").read_text()
    for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", readme, re.MULTILINE)):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
