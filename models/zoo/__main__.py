"""`python -m models.zoo`: which networks there are, what they cost and what is published of them.

`python -m models.zoo fetch PAIR` makes a pair of published networks (`models.zoo.catalog`).
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from models.router import Router, RouterConfig
from models.zoo.catalog import BUNDLED, PAIRS, PUBLISHED, cache_folder, fetched_folder
from models.zoo.fetch import FetchError, fetch_pair
from models.zoo.networks import SPECS, build_network, count_macs

LINE = "{:<16} {:>11} {:>8} {:>9} {:>6} {:<3} {:>5}"

FOOTNOTES = {"resnet101": "[1]", "vitpose-l": "[2]", "router": "[3]"}

NOTES = """\
G MAC of one 256 x 192 crop, without flip test. Measured: convolutions and matrix products, attention's included.
MMEngine's counter leaves out fused attention and adds norms and up-sampling; the paper quotes it.
AP: COCO val2017, detector boxes, flip test, of the public weights, as MMPose's tables have it.

[1] The paper's 9.01 is 9.10 with two digits swapped; its three Dyn-R101-SL rows carry the error on.
[2] The paper's 58.68 is the cost of vitpose-l-simple (AP 78.0), but the AP beside it, 78.2, is vitpose-l's, which
    costs 59.81 by the same counter.
[3] The paper's 0.19 is not reproduced: the released router has 0.122.
"""


def table() -> str:
    """The networks, one a line, under a headline."""
    lines = [
        LINE.format("", "", "measured", "MMEngine", "paper", "", "AP"),
        LINE.format("network", "parameters", "G MAC", "G MAC", "G MAC", "", "COCO"),
    ]
    lines += [
        _line(name, partial(build_network, name), spec.mmengine_gmacs, spec.paper_gmacs, spec.ap)
        for name, spec in SPECS.items()
    ]
    released = RouterConfig(outputs=3, score_index=1)
    lines.append(_line("router", partial(Router, released), 0.1235, 0.19, None))
    return "\n".join(line.rstrip() for line in lines)


def _line(
    name: str, build: Callable[[], nn.Module], mmengine: float, paper: float | None, ap: float | None
) -> str:
    with torch.device("meta"):
        network = build()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return LINE.format(
        name,
        f"{parameters:,}",
        f"{count_macs(network) / 1e9:.3f}",
        f"{mmengine:.3f}",
        "-" if paper is None else f"{paper:.2f}",
        FOOTNOTES.get(name, ""),
        "-" if ap is None else f"{ap:.1f}",
    )


READY = """\
{pair} is ready: {folder}
  PAIR={pair} make serve

Its detector, router and calibration scores are the bundled ones: we know of no public router for it with a licence (the
paper's authors released one for r50-h32 without any; ROUTER=dynpose=FILE takes it). The bundled router expects what
the bundled large net would add, so it may choose badly here. To train one, and to measure its thresholds:
  python -m calibration.train_router DATA --pair {pair} --out runs/{pair}.safetensors
  python -m calibration.thresholds PICTURES --pair {pair} --router dynpose=runs/{pair}.safetensors
"""


def pairs_table() -> str:
    """The pairs that can be fetched, one a line, and what is there of them."""
    line = "{:<12} {:<13} {:<10} {}"
    files = cache_folder() / "files"
    rows = [line.format("pair", "small", "large", ""), line.format(BUNDLED, "", "", "bundled")]
    for pair, networks in PAIRS.items():
        there = sum((files / PUBLISHED[network].kept).is_file() for network in networks)
        ready = (fetched_folder(pair) / "pair.json").is_file()
        rows.append(line.format(pair, *networks, "ready" if ready else f"{there} of 2 networks in the cache"))
    return "\n".join([*(row.rstrip() for row in rows), "", f"The cache is {cache_folder()}."])


def fetch(pair: str, *, keep: bool) -> int:
    """Returns the exit code."""
    if pair == BUNDLED:
        print(f"{BUNDLED} is part of the project, there is nothing to fetch")  # noqa: T201
        return 0
    try:
        folder = fetch_pair(pair, keep=keep)
    except FetchError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)  # noqa: T201
        return 130
    print(READY.format(pair=pair, folder=folder), end="")  # noqa: T201
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m models.zoo", description="The networks of the paper.")
    commands = parser.add_subparsers(dest="command", metavar="command")
    commands.add_parser("list", help="print the table of networks (what is done without a command)")
    fetching = commands.add_parser("fetch", help="download the networks of a named pair and make the pair")
    what = fetching.add_mutually_exclusive_group(required=True)
    what.add_argument("pair", nargs="?", metavar="PAIR", help="see --list")
    what.add_argument("--list", action="store_true", help="print the named pairs and what is there of them")
    fetching.add_argument(
        "--keep", action="store_true", help="keep the published files beside what is made of them"
    )
    options = parser.parse_args(arguments)
    if options.command == "fetch" and not options.list:
        return fetch(options.pair, keep=options.keep)
    if options.command == "fetch":
        print(pairs_table())  # noqa: T201
        return 0
    print(f"{table()}\n\n{NOTES}", end="")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
