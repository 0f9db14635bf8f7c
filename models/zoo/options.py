"""The choice of a pair on a command line, the same for every command."""

import argparse

from models.zoo.errors import PairError
from models.zoo.manifest import Manifest, read_manifest


def add_pair_arguments(parser: argparse.ArgumentParser) -> None:
    """`--pair`, and what takes the place of its networks."""
    parser.add_argument(
        "--pair", default="embedded", help="`embedded`, a fetched pair or a folder with pair.json"
    )
    for role in ("small", "large", "detector", "router"):
        parser.add_argument(
            f"--{role}",
            metavar="[NAME=]FILE",
            help=f"another {role} than the pair's, as the setting {role.upper()}",
        )


def pair_from(options: argparse.Namespace) -> Manifest:
    """The pair that `add_pair_arguments` asked for, which `load_pair` takes. Ends the program with one line where it
    cannot be used."""
    try:
        return read_manifest(
            options.pair,
            small=options.small,
            large=options.large,
            detector=options.detector,
            router=options.router,
        )
    except PairError as error:
        raise SystemExit(str(error)) from error
