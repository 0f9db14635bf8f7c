"""Tables 1 to 7 of the paper with our own numbers beside its, from evaluation runs."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from calibration.estimates import Costs
from calibration.rules import BAND
from calibration.runs import Run
from models.defaults import THETA
from models.router import RouterConfig

PAPER = Path(__file__).with_name("paper.json")

NETWORKS = {
    "ResNet-50": "resnet50",
    "ResNet-101": "resnet101",
    "ResNet-152": "resnet152",
    "MobileNetV2": "mobilenetv2",
    "ShuffleNetV2": "shufflenetv2",
    "HRNet-W32": "hrnet-w32",
    "HRNet-W48": "hrnet-w48",
    "Swin-L": "swin-l",
    "ViTPose-L": "vitpose-l",
}
SHORT = {
    "R50": "ResNet-50",
    "R101": "ResNet-101",
    "R152": "ResNet-152",
    "M2": "MobileNetV2",
    "H32": "HRNet-W32",
    "H48": "HRNet-W48",
    "SL": "Swin-L",
    "VL": "ViTPose-L",
}
CROWDED_THETA = 0.3
"""Of table 4's row at p = 60 %."""
WHOLE_ROUTER = RouterConfig()
OUR_COLUMNS = {"AP": "AP", "share": "share", "AP50": "AP50", "FPS": "people/s", "GFLOPs": "GMACs"}
"""By the paper's name, our own: of each table those that it has, and the share that was sent."""


@dataclass(frozen=True)
class Ours:
    """What we measured of a row. share: None for a net alone. macs: of a person and one pass of each net, as the paper
    counts. people_per_s: with the flip test."""

    ap: float
    ap50: float
    share: float | None
    macs: float
    people_per_s: float

    def cell(self, column: str) -> str:
        """Of OUR_COLUMNS."""
        share = "" if self.share is None else f"{100 * self.share:.1f} %"
        shown = {"AP": f"{100 * self.ap:.1f}", "share": share, "AP50": f"{100 * self.ap50:.1f}"}
        return (shown | {"FPS": f"{self.people_per_s:.1f}", "GFLOPs": f"{self.macs / 1e9:.2f}"})[column]


@dataclass(frozen=True)
class Wanted:
    """What a row of the paper's tables is about. small, large: names of `models.zoo`; a net alone is `small`, with
    None for the rest. stored: thresholds from a calibration file, else from the measured boxes."""

    small: str
    large: str | None
    p: float | None
    theta: float = THETA
    crowdpose: bool = False
    router: RouterConfig = WHOLE_ROUTER
    stored: bool = False


def wanted(table: str, row: dict[str, Any]) -> Wanted | None:
    """None where this project has no such row."""
    if table == "table 3":
        small, large = row["small"] or row["large"], row["large"] if row["small"] else None
        return Wanted(NETWORKS[small], large and NETWORKS[large], 0.5 if large else None)
    crowdpose = table == "table 4"
    model = str(row.get("model") or row.get("method") or "Dyn-R50-H32/50")  # tables 5 and 6 have one pair
    if not model.startswith("Dyn-"):
        return Wanted(NETWORKS[model], None, None, crowdpose=crowdpose) if model in NETWORKS else None
    pair, _, percent = model.removeprefix("Dyn-").partition("/")
    small, large = (NETWORKS[SHORT[name]] for name in pair.split("-"))
    p = int(percent or 50) / 100
    theta = row.get("theta", CROWDED_THETA if crowdpose and p == 0.6 else THETA)
    router = WHOLE_ROUTER
    if table == "table 5":
        pooling: Literal["avg", "none"] = "avg" if row["pooling"] else "none"
        router = RouterConfig(pooling=pooling, pconv=row["pconv"], sge=row["sge"])
    return Wanted(small, large, p, theta, crowdpose, router, stored=table == "table 7")


def find(row: Wanted, runs: Sequence[Run]) -> Ours | None:
    """The first run's numbers that are the row's: of its networks on the whole of its data set, with a detector's boxes
    and the flip test."""
    for run in runs:
        kind = run.paper_boxes
        if kind is None or run.content["limit"] is not None or not run.content["flip_test"]:
            continue
        is_crowdpose = any(each["easy"] is not None for each in kind["rows"])
        split = "test" if row.crowdpose else "val2017"
        if (is_crowdpose, run.content["split"]) != (row.crowdpose, split):
            continue
        found = alone(row.small, run, kind) if row.p is None else routed(row, run, kind)
        if found is not None:
            return found
    return None


def alone(network: str, run: Run, kind: dict[str, Any]) -> Ours | None:
    """A net alone, which may be either of the run's."""
    for role in ("small", "large"):
        if run.has(role, network):
            costs = costs_of(kind)
            for row in kind["rows"]:
                if row["name"] == role and row["ap"] is not None:
                    speed = 1 / costs.seconds[role]
                    return Ours(row["ap"], row["ap50"], None, costs.macs[role], speed)
    return None


def routed(wanted: Wanted, run: Run, kind: dict[str, Any]) -> Ours | None:
    """A pair under policy `band`."""
    assert wanted.large is not None
    if not (run.has("small", wanted.small) and run.has("large", wanted.large)):
        return None
    if run.content["theta"] != wanted.theta or not same_router(wanted.router, run):
        return None
    rows = [row for row in kind["rows"] if row["name"] == "band"]
    if not wanted.stored:
        rows = [row for row in kind["gains"] if row["rule"] == BAND]
    costs = costs_of(kind)
    for row in rows:
        if row["p"] == wanted.p and row["ap"] is not None:
            share = row["share"]
            return Ours(row["ap"], row["ap50"], share, costs.macs_at(share), costs.people_per_second(share))
    return None


def same_router(wanted: RouterConfig, run: Run) -> bool:
    """Whether the run's is the paper's with these switches. How many outputs it has makes no difference."""
    if run.content["router"] != "dynpose":
        return False
    config = run.content["router_config"]
    return all(config[name] == getattr(wanted, name) for name in ("pooling", "pconv", "sge"))


def costs_of(kind: dict[str, Any]) -> Costs:
    """With the multiply-accumulates of one pass."""
    costs = Costs(**kind["costs"])
    passes = {"small": 1 + costs.flip_test, "large": 1 + costs.flip_test}
    return replace(costs, macs={name: value / passes.get(name, 1) for name, value in costs.macs.items()})


def tables(runs: Sequence[Run]) -> Iterator[str]:
    """Markdown, line by line."""
    for table in json.loads(PAPER.read_bytes())["tables"]:
        columns = table["columns"]
        own = [name for name in OUR_COLUMNS if name in columns or name == "share"]
        yield f"### {table['name'].capitalize()}: {table['caption']}"
        yield ""
        heads = [f"{name} (paper)" if name in own else name for name in columns]
        yield "| " + " | ".join([*heads, *(f"{OUR_COLUMNS[name]} (ours)" for name in own)]) + " |"
        yield "|" + " --- |" * (len(columns) + len(own))
        for values in table["rows"]:
            row = dict(zip(columns, values, strict=True))
            question = wanted(table["name"], row)
            found = find(question, runs) if question else None
            shown = ["not run"] + [""] * (len(own) - 1)
            if row.get("set") == "test-dev":
                shown[0] = "known to COCO's server alone"
            elif found is not None:
                shown = [found.cell(name) for name in own]
            yield "| " + " | ".join(["" if v is None else str(v) for v in values] + shown) + " |"
        yield ""
        yield from (f"- {note}" for note in table["notes"])
        yield ""
