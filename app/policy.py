"""The split policy: the thresholds in force while scores come in, and from a difficulty to a route."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import islice
from typing import Literal

import numpy as np

from calibration.thresholds import Scores
from calibration.thresholds.split import Policy, split_for

Mode = Literal["fixed", "tracking"]

WINDOW = 1000
"""Newest scores that thresholds are taken from in `tracking`: few, so that a change of pictures is soon seen."""

CALIBRATION_ONLY = 200
"""Until so many live scores are in, the window is the calibration file's alone."""

HORIZON = 100
"""People over which a shortfall or an excess of large-net people is paid back; over more where people are routed by
thresholds that so many others were routed since, or it would be paid twice."""

LAG_KEPT = 0.999
"""Of that number, for each person who comes after it."""

PEOPLE_PER_REVISION = 20
TIE_TOLERANCE = 0.03
"""A reachable share further from p than this means ties; paying back would then swing between two wrong shares."""

REALISED = 2000


class Route(StrEnum):
    """Eq. 2: hard people go to the large net, the others to the small one."""

    easy = "easy"
    hard = "hard"
    extremely_hard = "extremely_hard"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a routing decision reads, replaced as a whole.

    version: counts changes of the settings. revision: counts updates from the window. reachable: the share nearest to
    p that the scores allow. samples: scores in the window.
    """

    p: float
    theta: float
    mode: Mode
    policy: Policy
    k1: float
    k2: float
    k1_lowered: bool
    reachable: float
    samples: int
    version: int
    revision: int

    def route(self, difficulty: float) -> Route:
        if difficulty <= self.k1:
            return Route.easy
        return Route.hard if difficulty < self.k2 else Route.extremely_hard


class SplitPolicy:
    """Holds the present snapshot. One writer, the event loop; `snapshot` may be read anywhere.

    calibration: difficulties of people that are like those to come, in any order.
    """

    def __init__(
        self,
        calibration: Sequence[float],
        *,
        p: float,
        theta: float,
        mode: Mode,
        policy: Policy,
        version: int = 1,
    ) -> None:
        self._realised: deque[bool] = deque(maxlen=REALISED)
        self._calibrate(calibration)
        self._shortfall = 0.0
        self._lag = 0.0
        self._since_revision = 0
        self.snapshot = self._take(p, theta, mode, policy, version=version, revision=0)

    def configure(
        self,
        *,
        p: float,
        theta: float,
        mode: Mode,
        policy: Policy,
        calibration: Sequence[float] | None = None,
    ) -> Snapshot:
        """Change the settings; the window stays unless another calibration comes. Raises ValueError."""
        if calibration is not None:
            self._calibrate(calibration)
        self._realised.clear()
        self._shortfall = 0.0
        old = self.snapshot
        self.snapshot = self._take(
            p, theta, mode, policy, version=old.version + 1, revision=old.revision + (calibration is not None)
        )
        return self.snapshot

    def for_p(self, p: float) -> Snapshot:
        """The present snapshot with a request's own p."""
        old = self.snapshot
        return self._take(p, old.theta, old.mode, old.policy, old.version, old.revision, pay_back=False)

    def observe(self, difficulty: float, route: Route, *, own_p: bool, revision: int | None = None) -> None:
        """Take note of a person just routed. own_p: by the service's own p, not by a request's. revision: of the
        snapshot that routed, where it is not the present one."""
        if own_p:
            hard = route is Route.hard
            self._realised.append(hard)
            if revision is not None:
                behind = (self.snapshot.revision - revision) * PEOPLE_PER_REVISION
                self._lag = max(LAG_KEPT * self._lag, behind)
            # Bounded by what can be asked for, so that a long spell of unreachable shares is not paid back for ever.
            p = self.snapshot.p
            most, least = (1 - p) * self._horizon, -p * self._horizon
            self._shortfall = min(most, max(least, self._shortfall + p - hard))
        self._live.append(difficulty)
        self._since_revision += 1
        if self._since_revision >= PEOPLE_PER_REVISION and self.snapshot.mode == "tracking":
            self._since_revision = 0
            if len(self._live) >= CALIBRATION_ONLY:
                missing = WINDOW - len(self._live)
                newest = np.fromiter(islice(self._live, max(0, -missing), None), dtype=np.float64)
                self._window = np.sort(np.concatenate([self._calibration[: max(0, missing)], newest]))
            old = self.snapshot
            self.snapshot = self._take(old.p, old.theta, old.mode, old.policy, old.version, old.revision + 1)

    @property
    def _horizon(self) -> float:
        return max(HORIZON, self._lag)

    def realised(self) -> tuple[int, float]:
        """(people, share sent to the large net) with the service's own p since its last change, the newest 2,000."""
        people = len(self._realised)
        return people, sum(self._realised) / people if people else 0.0

    def drift(self) -> float:
        """Largest difference between the distributions of the live scores and of the calibration's
        (Kolmogorov-Smirnov), 0 to 1; 0 while there are too few live scores."""
        if len(self._live) < CALIBRATION_ONLY:
            return 0.0
        live, reference = np.sort(np.asarray(self._live)), self._sorted
        both = np.concatenate([live, reference])
        difference = np.searchsorted(live, both, side="right") / len(live) - np.searchsorted(
            reference, both, side="right"
        ) / len(reference)
        return float(np.abs(difference).max())

    def _calibrate(self, scores: Sequence[float]) -> None:
        # A part of them stays in the window while it fills, so their order must not be one of size.
        self._calibration: Scores = np.random.default_rng(0).permutation(np.asarray(scores, dtype=np.float64))
        self._window = self._sorted = np.sort(self._calibration)
        self._live: deque[float] = deque(maxlen=WINDOW)

    def _take(
        self,
        p: float,
        theta: float,
        mode: Mode,
        policy: Policy,
        version: int,
        revision: int,
        *,
        pay_back: bool = True,
    ) -> Snapshot:
        window = self._window if mode == "tracking" else self._sorted
        split = split_for(window, p, theta, policy)
        snapshot = Snapshot(
            p=p,
            theta=theta,
            mode=mode,
            policy=policy,
            k1=split.k1,
            k2=split.k2,
            k1_lowered=split.k1_lowered,
            reachable=p if abs(split.share - p) <= 2.5 / len(window) else split.share,
            samples=len(window),
            version=version,
            revision=revision,
        )
        ties = abs(split.share - p) > max(TIE_TOLERANCE, 1 / len(window))
        if pay_back and mode == "tracking" and 0 < p < 1 and not ties:
            owed = min(1.0, max(0.0, p + self._shortfall / self._horizon))
            paid = split_for(window, owed, theta, policy)
            snapshot = replace(snapshot, k1=paid.k1, k2=paid.k2, k1_lowered=paid.k1_lowered)
        return snapshot
