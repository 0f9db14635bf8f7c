"""`python -m app.cli`, also installed as `dynpose`."""

import sys

from app.crew import leave

EXTRA = ("httpx", "rich", "typer")
"""What the extra `cli` of pyproject.toml asks for."""


def main() -> int:
    """Run a command; one line says what to install where the extra `cli` is missing."""
    try:
        from app.cli.commands import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        print(f"dynpose: {error.name} is missing: pip install {' '.join(EXTRA)}", file=sys.stderr)
        return 2
    try:
        app(prog_name="dynpose")
    except SystemExit as end:  # which it always raises
        leave(int(end.code or 0))
    return 0


if __name__ == "__main__":
    sys.exit(main())
