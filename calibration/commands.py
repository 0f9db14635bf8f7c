"""How the commands that measure and train end."""

import sys
from collections.abc import Callable
from typing import NoReturn

from calibration.data import DataError
from models.runtime import DeviceError
from models.zoo.errors import PairError


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a command and end the process. What is wrong with what the command was given ends it in one line."""
    try:
        sys.exit(main())
    except (DataError, DeviceError, PairError, OSError) as error:
        sys.exit(str(error))
