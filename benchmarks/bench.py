"""The service beside everything else that could be done with the same networks, and beside other networks.

    python -m benchmarks.bench DATA --peers PEERS --initial INITIAL
    python -m benchmarks.bench DATA --report        write benchmarks/RESULTS.md from what was measured, measure nothing
    python -m benchmarks.bench DATA --soak 20000    so many requests to the service, for growth (--report shows it, too)

DATA is a folder with `val.json` (COCO format), without which no accuracy is measured, or with plain pictures. Each
measurement is a line of OUT/bench.jsonl as soon as it is made. The same command goes on where it was cut off; another
one, or the same after its end, starts anew and keeps the old file beside the new one. One load generator posts the same
pictures in the same order to all.
"""

import argparse
import asyncio
import itertools
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks import accuracy, cells
from benchmarks.client import RequestFailed
from benchmarks.contenders import Contender, Loops, NotReady, Running, Server, Setup, contenders
from benchmarks.loops import shuffled_forever
from benchmarks.machine import describe
from benchmarks.pictures import Post, ordered, read_posts
from benchmarks.records import Record, Records, select, set_aside
from benchmarks.report import soak, write_report
from benchmarks.verdicts import OTHER_SERVERS
from models.zoo.errors import PairError

SPLITS = (0.0, 0.25, 0.5, 0.75, 1.0)
ROUND_CLIENTS = 8
LEAST_PICTURES = 64
"""Of a cell in the rounds."""
WARM_PICTURES = 64
"""Posted to other servers before they are measured: they compile some of their networks when they first need them, and
the service has before it is ready."""
OPEN_SHARES = (0.5, 0.65, 0.8)
"""Rates of arrivals in the open loop, in shares of what the service answers in the closed loop."""
OVERLOAD = 2.0
SOAK_SAMPLES = 100

RECORDS = "bench.jsonl"
RESULTS = Path("benchmarks/RESULTS.md")

Measure = Callable[[], Awaitable[Record]]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.report:
        posts = ordered(read_posts(options.data, options.split))
        if not posts:
            print(f"skipped: needs pictures with people in {options.data}")
            return 0
        bench = Bench(options, posts, RECORDS)
        asyncio.run(bench.run())
        if options.soak:  # a report of its own would take the place of a whole one
            print(soak(bench.records.rows))
            return 0
    print(write_report(options.out, options.results))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--peers", type=Path, default=Path("peers"), help="folder with third-party ONNX nets")
    parser.add_argument("--initial", type=Path, default=Path("initial"), help="folder with YOLOv8n-pose")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds behind each ratio")
    parser.add_argument("--overload-seconds", type=float, default=60.0)
    parser.add_argument("--accuracy-pictures", type=int, default=500)
    parser.add_argument(
        "--only", nargs="+", help="contenders, by name; the report then lies beside the records"
    )
    parser.add_argument("--soak", type=int, metavar="REQUESTS", help="only this: look for growth")
    parser.add_argument("--report", action="store_true", help="only write the report")
    options = parser.parse_args(arguments)
    if options.only and options.results == RESULTS:  # a part shall not take the place of the whole
        options.results = options.out / RESULTS.name
    return options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, help="folder with pictures of people")
    parser.add_argument("--split", default="val", help="which JSON file of the folder")
    parser.add_argument("--pair", default="embedded")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of records and logs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the report")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--warm-up", type=float, default=3.0, help="seconds of load before it, not counted")


def end_with_sigterm() -> None:
    """As with Ctrl-C: the contenders are processes of their own and would stay."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


class Bench:
    """The contenders, the pictures and the records of one command."""

    def __init__(self, options: argparse.Namespace, posts: Sequence[Post], name: str) -> None:
        self.options = options
        self.posts = posts
        self.running: dict[str, Running] = {}
        self.setup = Setup(
            options.data,
            options.split,
            options.pair,
            getattr(options, "peers", Path()),
            getattr(options, "initial", Path()),
            options.out,
        )
        wanted = getattr(options, "only", None)
        self.contenders = {
            each.name: each
            for each in contenders(os.cpu_count() or 1)
            if wanted is None or each.name in wanted
        }
        if not getattr(options, "soak", None):
            set_aside(options.out / name, self.command())
        self.records = Records(options.out / name)

    async def run(self) -> None:
        end_with_sigterm()
        self.records.add(self.about())
        if self.options.soak:
            async with self.up("service"):
                await self.soak(self.options.soak)
            return
        await self.starts()
        async with self.up("service", "bound", "naive", "rtmlib", "yolo", "yolo-openvino"):
            await self.idle()
            await self.grid()
            await self.ratios(ROUND_CLIENTS, "service", "bound", "naive")
            await self.alone()
            await self.accuracy()
            await self.overload()
        # Ray is never quite idle, so that only these are measured beside it.
        async with self.up("service", "litserve", "ray-serve"):
            await self.idle()
            await self.grid()
            await self.ratios(ROUND_CLIENTS, "service", "litserve", "ray-serve", experiment="servers")
            await self.open_loops()
        self.records.add({"experiment": "end"})

    def command(self) -> str:
        """The command line. Folders are called as in the command's description, wherever they lie."""
        folders = {
            str(self.setup.data): "DATA",
            str(self.setup.peers): "PEERS",
            str(self.setup.initial): "INITIAL",
        }
        return " ".join([Path(sys.argv[0]).stem, *(folders.get(word, word) for word in sys.argv[1:])])

    def about(self) -> Record:
        """The run: when, where, of what."""
        return {
            "experiment": "run",
            "command": self.command(),
            "date": time.strftime("%Y-%m-%d %H:%M"),
            "pictures": len(self.posts),
            "cores": os.cpu_count(),
            "machine": describe(),
            "how": {each.name: each.how for each in self.contenders.values()},
        }

    @asynccontextmanager
    async def up(self, *names: str) -> AsyncIterator[None]:
        """Start these contenders, and stop them at the end. One that cannot be had is a record with the reason."""
        try:
            for name in names:
                if name in self.contenders:
                    await self._start(self.contenders[name])
            yield
        finally:
            await asyncio.gather(*(running.stop() for running in self.running.values()))
            self.running = {}

    async def _start(self, contender: Contender) -> None:
        reason = contender.missing(self.setup)
        if reason is None:
            print(f"starting {contender.name}", flush=True)
            running = (Loops if contender.kind == "loops" else Server)(contender, self.setup)
            self.running[contender.name] = running
            try:
                seconds = await running.start(self.posts[0])
                print(f"  {seconds:.1f} s", flush=True)
                if isinstance(running, Server) and contender.name in OTHER_SERVERS:
                    await running.warm(self.posts[:WARM_PICTURES], ROUND_CLIENTS)
                return
            except NotReady as error:
                reason = str(error)
                await self.running.pop(contender.name).stop()
        print(f"skipped: {contender.name} {reason}", flush=True)
        self.records.add({"experiment": "skipped", "contender": contender.name, "reason": reason})

    async def measure(self, measure: Measure, **key: object) -> None:
        """Record what is measured, unless it was before. One that fails is recorded with the reason, and no end."""
        if self.records.has(**key):
            return
        shown = " ".join(f"{name}={value}" for name, value in key.items() if value is not None)
        try:
            with self.running[str(key["contender"])].awake():
                row = dict(key) | await measure()
        except (NotReady, RequestFailed, OSError, EOFError) as error:
            row = {"experiment": "failed", "contender": key["contender"], "reason": f"{shown}: {error}"}
        self.records.add(row)
        speed = f"{row['people_per_s']:.1f} people/s" if "people_per_s" in row else ""
        print(row.get("reason") or f"{shown}: {speed}", flush=True)

    async def closed(
        self, name: str, experiment: str, clients: int, p: float | None, turn: int | None = None
    ) -> None:
        """A cell of a server at so many clients; of loops, which have none, at any."""
        running = self.running[name]
        options = self.options
        count = self.count() if turn is not None else None

        async def measure() -> Record:
            if isinstance(running, Loops):
                return await cells.loops(
                    running,
                    p=0.5 if p is None else p,
                    warm_up=options.warm_up,
                    seconds=options.seconds,
                    seed=turn or 0,
                    count=count,
                )
            assert isinstance(running, Server)
            if running.contender.turns and p is not None:
                await running.client.set_p(p)
            return await cells.closed(
                running,
                itertools.chain(
                    self.posts[: 2 * clients] if count else (), shuffled_forever(self.posts, turn or 0)
                ),
                clients=clients,
                warm_up=options.warm_up,
                seconds=options.seconds,
                count=count,
            )

        key = {"experiment": experiment, "contender": name, "p": p, "round": turn}
        await self.measure(measure, **key, clients=None if isinstance(running, Loops) else clients)

    async def starts(self) -> None:
        """Seconds until ready: the first start may convert networks, the second finds them kept."""
        for number in (1, 2) if "service" in self.contenders else ():
            if self.records.has(experiment="start", contender="service", round=number):
                continue
            server = Server(self.contenders["service"], self.setup)
            try:
                ready = await server.start(self.posts[0])
                await server.client.pose(self.posts[0])
                server.look()
                usage = server.usage()
            finally:
                await server.stop()
            print(f"start {number} of the service: ready after {ready:.1f} s", flush=True)
            self.records.add(
                {
                    "experiment": "start",
                    "contender": "service",
                    "round": number,
                    "ready_s": ready,
                    "resident_mib": usage.resident_mib,
                }
            )

    async def idle(self) -> None:
        """What each takes of the processor while nobody asks it anything."""
        await asyncio.sleep(3)
        for running in self.running.values():
            running.look()
        before = {name: running.usage() for name, running in self.running.items()}
        seconds = 4.0
        await asyncio.sleep(seconds)
        for name, running in self.running.items():
            key = {"experiment": "idle", "contender": name}
            if not self.records.has(**key):
                usage = running.usage()
                cores = (usage.cpu_seconds - before[name].cpu_seconds) / seconds
                self.records.add(key | {"server_cores": cores, "resident_mib": usage.resident_mib})
            running.hold()

    async def grid(self) -> None:
        """Every contender that runs, at each of its p and, servers, at each number of clients."""
        for name, running in self.running.items():
            splits = SPLITS if running.contender.turns else (running.contender.fixed,)
            counts = [0] if isinstance(running, Loops) else self.options.clients
            for clients in counts:
                for p in splits:
                    await self.closed(name, "grid", clients, p)

    async def ratios(self, clients: int, *names: str, experiment: str = "rounds") -> None:
        """Alternating rounds of those between which ratios are taken."""
        for turn in range(self.options.rounds):
            for name in names:
                if name not in self.running:
                    continue
                contender = self.running[name].contender
                splits = (0.0, 0.5, 1.0) if experiment == "rounds" else (0.5,)
                for p in splits if contender.turns else (contender.fixed,):
                    await self.closed(name, experiment, clients, p, turn)

    async def alone(self) -> None:
        """The nets of the pair without all else, in one thread."""
        bound = self.running.get("bound")
        if isinstance(bound, Loops):

            async def measure() -> Record:
                costs: Record = await bound.ask_one(given=self.options.rounds)
                return costs | {"batches": await bound.ask_one(batches=True)}

            await self.measure(measure, experiment="alone", contender="bound")

    async def accuracy(self) -> None:
        images = accuracy.labelled(self.options.data, self.options.split, self.options.accuracy_pictures)
        for name, running in self.running.items() if images else ():
            if name in ("bound", "naive"):  # the service's own networks
                continue
            for p in SPLITS if running.contender.turns else (None,):

                async def measure(running: Running = running, p: float | None = p) -> Record:
                    return await accuracy.measure(running, self.posts, images, p)

                await self.measure(measure, experiment="accuracy", contender=name, p=p)

    async def open_loops(self) -> None:
        """Constant arrivals, as many for each contender, which take turns."""
        for turn in range(self.options.rounds):
            for share in OPEN_SHARES:
                for name, running in self.running.items():
                    assert isinstance(running, Server)
                    await self.opened(name, running, "open", share, self.options.seconds, turn)

    async def overload(self) -> None:
        """Twice what the service can do, and then the pictures that it answered of these by themselves, in the closed
        loop. Memory is read before, and when all of it is over."""
        service = self.running.get("service")
        if not isinstance(service, Server):
            return
        await self.opened("service", service, "overload", OVERLOAD, self.options.overload_seconds)
        named = {post.name: post for post in self.posts}
        answered = [
            named[name] for row in select(self.records, experiment="overload") for name in row["pictures"]
        ]

        async def measure() -> Record:
            return await cells.closed(
                service,
                itertools.chain(answered[: 2 * ROUND_CLIENTS], itertools.cycle(answered)),
                clients=ROUND_CLIENTS,
                warm_up=self.options.warm_up,
                seconds=self.options.seconds,
                count=len(answered),
            )

        if answered:
            await self.measure(measure, experiment="answered", contender="service", p=0.5)

    async def opened(
        self,
        name: str,
        server: Server,
        experiment: str,
        share: float,
        seconds: float,
        turn: int | None = None,
    ) -> None:
        """Arrivals at a share of what the service answered at best when it had clients to wait for it."""
        peak = self.peak("service")

        async def measure() -> Record:
            if server.contender.turns:
                await server.client.set_p(0.5)
            server.look()
            before = server.usage().resident_mib
            row = await cells.opened(
                server,
                shuffled_forever(self.posts, turn or 0),
                rate=share * peak,
                warm_up=self.options.warm_up,
                seconds=seconds,
            )
            server.look()
            after = server.usage().resident_mib  # all of it is over now
            return row | {"offered_per_s": share * peak, "before_mib": before, "after_mib": after}

        if peak:
            await self.measure(measure, experiment=experiment, contender=name, p=0.5, rate=share, round=turn)

    def count(self) -> int:
        """Pictures of a cell in the rounds, the same for all: as many as the service answers in the time of a cell."""
        return max(LEAST_PICTURES, round(float(self.options.seconds) * self.peak("service")))

    def peak(self, name: str) -> float:
        """Most images/s of the grid at p = 0.5."""
        grid = select(self.records, experiment="grid", contender=name, p=0.5)
        return float(max((row["images_per_s"] for row in grid), default=0.0))

    async def soak(self, requests: int) -> None:
        """So many requests of 8 clients, and the memory all the while."""
        server = self.running["service"]
        assert isinstance(server, Server)
        server.look()
        samples: list[list[float]] = []
        pictures = itertools.islice(shuffled_forever(self.posts, 0), requests)
        done = failed = 0

        async def client() -> None:
            nonlocal done, failed
            for picture in pictures:
                answer = await server.client.pose(picture)
                failed += answer.status != 200  # not before the await: others count meanwhile
                done += 1
                if done % max(1, requests // SOAK_SAMPLES) == 0:
                    samples.append([done, server.usage().resident_mib])

        begin = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(ROUND_CLIENTS)))
        seconds = time.perf_counter() - begin
        self.records.add(
            {
                "experiment": "soak",
                "contender": "service",
                "requests": requests,
                "failed": failed,
                "seconds": seconds,
                "samples": samples,
            }
        )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (NotReady, PairError) as error:
        sys.exit(str(error))
    except asyncio.CancelledError:
        sys.exit("ended before its time; the same command goes on from here")
