"""Who may import whom among the project's folders (the rooms of the README's architecture section)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MAY_IMPORT: dict[str, set[str]] = {
    "models": set(),
    "calibration": {"models"},
    "app": {"models", "calibration.thresholds"},
    "training": {"models", "calibration"},
    "benchmarks": {"models", "calibration", "app"},
    "deploy": {"models", "app"},
}
LEFT_TO_APP = {"fastapi", "starlette", "uvicorn", "prometheus_client", "asyncio", "threading", "time"}
"""models/ has no HTTP, no threads and no clock."""
LOCKS = ("models/album.py", "models/cuda.py", "models/openvino.py")
"""Pictures come and go in several threads; the device records for one thread at a time; a compiled network runs in one
thread at a time."""
DOWNLOADS = "models/zoo/fetch.py"
"""A command, no part of the service, though it stands with the pairs that it makes."""
ASKS_SERVERS = "app/cli/client.py"
"""The command line's client of the service: it downloads nothing, and the service does not know it."""
STARTS_THREADS = "app/crew.py"


def imports(source: str, package: str = "") -> Iterator[str]:
    """Dotted names that `source`, a module of `package`, imports anywhere, also inside functions.

    `from a import b` gives `a.b`, since b may be a module.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def is_in(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def breaches(room: str, source: str, package: str = "") -> list[str]:
    """Imports of `source`, a file of `room`, that the table above does not allow."""
    return [
        name
        for name in imports(source, package)
        if name.split(".")[0] in MAY_IMPORT.keys() | {"tests"}
        and not is_in(name, room)
        and not any(is_in(name, allowed) for allowed in MAY_IMPORT[room])
    ]


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize(
    ("room", "source", "found"),
    [
        ("models", "from app import settings", ["app.settings"]),
        ("models", "def f():\n    import calibration.data", ["calibration.data"]),
        ("models", "from models.codec import decode\nimport appdirs", []),
        ("app", "from calibration.thresholds import thresholds", []),
        ("app", "from calibration import thresholds", []),
        ("app", "from calibration.data import read_split", ["calibration.data.read_split"]),
        ("app", "import training.pose", ["training.pose"]),
        ("training", "from app import main", ["app.main"]),
        ("calibration", "if True:\n    from training import pose", ["training.pose"]),
        ("app", "from .batching import Ticket", []),
        ("app", "from tests import fakes", ["tests.fakes"]),
    ],
)
def test_a_forbidden_import_is_found_wherever_it_stands(room: str, source: str, found: list[str]) -> None:
    assert breaches(room, source, package=room) == found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    assert sources(room), f"{room}/ has no Python files"
    broken = {}
    for path in sources(room):
        package = ".".join(path.relative_to(ROOT).parent.parts)
        if found := breaches(room, path.read_text(), package):
            broken[str(path.relative_to(ROOT))] = found
    assert broken == {}


def test_models_know_neither_http_nor_threads_nor_the_clock() -> None:
    broken = {}
    for path in sources("models"):
        if found := {name.split(".")[0] for name in imports(path.read_text(), "models")} & LEFT_TO_APP:
            broken[str(path.relative_to(ROOT))] = found
    broken.pop(DOWNLOADS, None)
    for path in LOCKS:
        assert broken.pop(path, {"threading"}) == {"threading"}
    assert broken == {}


def test_only_one_command_downloads() -> None:
    """Whoever imports it could download as well: that is its command line alone."""
    clients = ("urllib.request", "http.client", "requests", "httpx", "models.zoo.fetch")
    found = {
        str(path.relative_to(ROOT))
        for room in ("app", "models", "calibration")
        for path in sources(room)
        for name in imports(path.read_text(), ".".join(path.relative_to(ROOT).parent.parts))
        if any(is_in(name, client) for client in clients)
    }
    assert found == {DOWNLOADS, "models/zoo/__main__.py", ASKS_SERVERS}


def test_the_service_does_not_import_its_command_line() -> None:
    """It is there without the extra `cli`, and has no client of HTTP in it."""
    extra = ("app.cli", "typer", "rich", "httpx")
    found = {
        str(path.relative_to(ROOT))
        for path in sources("app")
        if "cli" not in path.relative_to(ROOT).parts
        for name in imports(path.read_text(), ".".join(path.relative_to(ROOT).parent.parts))
        if any(is_in(name, module) for module in extra)
    }
    assert found == set()


def test_only_the_crew_starts_threads() -> None:
    """Decoding's thread pool aside, which is an executor and shares nothing."""
    starters = [
        str(path.relative_to(ROOT))
        for path in sources("app")
        if any(is_in(name, "threading.Thread") for name in imports(path.read_text(), "app"))
        or "threading.Thread(" in path.read_text()
    ]
    assert starters in ([], [STARTS_THREADS])


def test_every_folder_of_code_has_its_place_in_the_table() -> None:
    folders = {
        path.parent.name for path in ROOT.glob("*/__init__.py") if not path.parent.name.startswith(".")
    }
    assert folders - {"tests"} == set(MAY_IMPORT)
