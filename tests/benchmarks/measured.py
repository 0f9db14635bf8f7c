"""Records as the commands write them, with round figures."""

from benchmarks.records import Record

RUN = {
    "experiment": "run",
    "command": "bench DATA",
    "date": "2026-01-01 00:00",
    "pictures": 7,
    "cores": 2,
    "machine": {
        "processor": "Some CPU, 2 cores",
        "features": "avx512_bf16",
        "memory": "8 GiB",
        "versions": "Python 3.11",
    },
    "how": {"service": "this service", "bound": "networks", "naive": "eager", "litserve": "LitServe"},
}


def cell(experiment: str, contender: str, people_per_s: float, p95_ms: float = 100, **key: object) -> Record:
    return {
        "experiment": experiment,
        "contender": contender,
        "p": 0.5,
        "clients": 8,
        "seconds": 8.0,
        "images": 10,
        "images_per_s": people_per_s / 3,
        "people_per_s": people_per_s,
        "p50_ms": p95_ms / 2,
        "p95_ms": p95_ms,
        "p99_ms": 1.2 * p95_ms,
        "ms": [p95_ms / 2] * 9 + [1.2 * p95_ms],
        "failed": {},
        "refused_p50_ms": None,
        "refused_p99_ms": None,
        "over_stages_ms": 1.5,
        "decode_share": 0.1,
        "server_cores": 1.8,
        "own_cores": 0.1,
        "resident_mib": 1000.0,
        "peak_mib": 1100.0,
        "stages": {"detect": 0.5, "large": 0.7},
    } | key


def everything() -> list[Record]:
    """One record at least of each experiment of `bench`."""
    rows: list[Record] = [RUN]
    rows += [
        {"experiment": "start", "contender": "service", "round": n, "ready_s": s, "resident_mib": 900.0}
        for n, s in ((1, 30.0), (2, 8.0))
    ]
    rows.append({"experiment": "idle", "contender": "service", "server_cores": 0.01, "resident_mib": 900.0})
    rows.append({"experiment": "skipped", "contender": "litserve", "reason": "needs the package litserve"})
    for clients in (1, 8):
        rows += [cell("grid", "service", 60, p=p, clients=clients) for p in (0.5, 1.0)]
        rows.append(cell("grid", "naive", 8, 900, p=1.0, clients=clients))
    for turn, speed in enumerate((80, 90, 100)):
        rows += [cell("rounds", "service", each, p=p, round=turn) for p, each in ((0.0, 150), (1.0, 60))]
        rows.append(cell("rounds", "service", speed, round=turn))
        rows.append(cell("rounds", "bound", 100, round=turn, clients=None))
        rows.append(cell("rounds", "naive", 10, p=1.0, round=turn))
    ms = {"router": [1.0] * 3, "small": [4.0] * 3, "large": [20.0] * 3, "routed": [13.0] * 3}
    rows.append(
        {
            "experiment": "alone",
            "contender": "bound",
            "people": 9,
            "ms": ms,
            "small_in_router": False,
            "batches": {"detect": 1, "large": 4},
        }
    )
    for name, slow in (("service", 80), ("litserve", 100)):
        rows += [
            cell("open", name, 60 * share, slow * share, rate=share, offered_per_s=20 * share, round=turn)
            for turn in range(3)
            for share in (0.5, 1.0)
        ]
    rows.append(
        cell("overload", "service", 58, rate=2.0, offered_per_s=40.0, before_mib=1000.0, after_mib=1010.0)
        | {"failed": {"429": 9}, "refused_p50_ms": 3.0, "refused_p99_ms": 30.0}
    )
    rows.append(cell("answered", "service", 60))
    rows += [
        {
            "experiment": "accuracy",
            "contender": "service",
            "p": p,
            "pictures": 5,
            "ap": 0.5 + p / 10,
            "low": 0.4,
            "high": 0.7,
            "people_per_picture": 3.0,
        }
        for p in (0.5, 1.0)
    ]
    samples = [[i, 1000.0 + i] for i in range(100)]
    rows.append(
        {"experiment": "soak", "contender": "service", "requests": 100, "failed": 0, "seconds": 9.0}
        | {"samples": samples}
    )
    return rows


def scaling() -> list[Record]:
    rows = [RUN]
    for name in ("clients", "people", "megapixels"):
        rows += [
            cell(f"scaling {name}", "service", 50 + each, bound_by="the cores") | {name: each}
            for each in (1, 8)
        ]
    return rows
