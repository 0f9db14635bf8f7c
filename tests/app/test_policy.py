import math

import numpy as np
import pytest

from app.policy import PEOPLE_PER_REVISION, Route, SplitPolicy
from calibration.thresholds import thresholds

STREAMS = range(5)


def normal(rng: np.random.Generator, n: int, shift: float = 0) -> np.ndarray:
    """A narrow band of scores, as real routers give; `shift` in standard deviations."""
    return 0.65 + 0.02 * (rng.normal(size=n) + shift)


def skewed(rng: np.random.Generator, n: int, shift: float = 0) -> np.ndarray:
    return 1 / (1 + np.exp(-(0.5 + 0.1 * (rng.gamma(2, 1, size=n) + math.sqrt(2) * shift))))


def policy(scores, p=0.5, *, theta=0.1, mode="tracking", rule="band") -> SplitPolicy:
    return SplitPolicy(list(scores), p=p, theta=theta, mode=mode, policy=rule)


def send(split: SplitPolicy, scores) -> np.ndarray:
    """Route a stream as the service does; which of them went to the large net."""
    hard = []
    for score in map(float, scores):
        route = split.snapshot.route(score)
        split.observe(score, route, own_p=True)
        hard.append(route is Route.hard)
    return np.array(hard)


@pytest.mark.parametrize("rule", ["band", "top"])
@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("draw", [normal, skewed])
def test_the_realised_share_is_p_on_steady_streams(draw, p, rule):
    for seed in STREAMS:
        rng = np.random.default_rng(seed)
        hard = send(policy(draw(rng, 2000), p, rule=rule), draw(rng, 4000))
        assert hard[200:2200].mean() == pytest.approx(p, abs=0.03)
        assert hard[2000:4000].mean() == pytest.approx(p, abs=0.02)


def test_a_calibration_of_few_scores_is_not_taken_for_ties():
    """Ten scores know shares of 0.2 and 0.3 alone."""
    shares = [
        send(
            policy(np.linspace(0.05, 0.95, 10), 0.25, rule="top"),
            np.random.default_rng(seed).uniform(size=180),
        )
        for seed in STREAMS
    ]
    assert np.mean(shares) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("rule", ["band", "top"])
@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("shift", [2, -2])
def test_the_share_recovers_from_an_abrupt_shift_of_two_standard_deviations(shift, p, rule):
    for seed in STREAMS:
        rng = np.random.default_rng(seed)
        split = policy(normal(rng, 2000), p, rule=rule)
        send(split, normal(rng, 3000))
        assert send(split, normal(rng, 2500, shift))[500:].mean() == pytest.approx(p, abs=0.03)


@pytest.mark.parametrize("p", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("shift", [3, -3])
def test_the_share_is_p_beside_many_others_who_are_routed_by_another(shift, p):
    """Nine of ten people come with requests of an own p, and are other people."""
    rng = np.random.default_rng(0)
    split = policy(normal(rng, 2000), p, rule="top")
    hard = []
    for score in normal(rng, 3000):
        for other in normal(rng, 9, shift):
            split.observe(float(other), split.for_p(1.0).route(float(other)), own_p=False)
        hard.extend(send(split, [score]))
    assert np.mean(hard[1000:]) == pytest.approx(p, abs=0.03)


def test_a_spell_of_unreachable_shares_is_not_paid_back_for_long():
    rng = np.random.default_rng(0)
    split = policy(normal(rng, 2000), 0.5, rule="top")
    for score in map(float, normal(rng, 3000)):
        split.observe(score, Route.easy, own_p=True)
    assert send(split, normal(rng, 1000)).sum() == pytest.approx(550, abs=20)


def test_fixed_mode_uses_eq_7_and_8_of_the_calibration_and_never_moves():
    scores = normal(np.random.default_rng(0), 1000)
    split = policy(scores, 0.4, mode="fixed")
    literal = thresholds(scores, 0.4, 0.1)
    send(split, normal(np.random.default_rng(1), 500, shift=2))
    assert (split.snapshot.k1, split.snapshot.k2) == (literal.k1, literal.k2)
    assert split.snapshot.revision == 0


@pytest.mark.parametrize("mode", ["fixed", "tracking"])
@pytest.mark.parametrize(("p", "routes"), [(0.0, {Route.easy, Route.extremely_hard}), (1.0, {Route.hard})])
def test_p_of_0_and_1_are_exact(p, routes, mode):
    rng = np.random.default_rng(0)
    split = policy(normal(rng, 300), p, mode=mode)
    stream = [*normal(rng, 1000, shift=1), 0.0, 1.0]
    hard = send(split, stream)
    assert hard.all() if p else not hard.any()
    assert {split.snapshot.route(float(score)) for score in stream} == routes
    if p:
        assert (split.snapshot.k1, split.snapshot.k2) == (-math.inf, math.inf)
    else:
        assert split.snapshot.k1 == split.snapshot.k2


def test_with_top_a_p_of_0_shows_as_a_threshold_that_no_score_passes():
    snapshot = policy(normal(np.random.default_rng(0), 300), 0.0, rule="top").snapshot
    assert (snapshot.k1, snapshot.k2) == (1.0, math.inf)


@pytest.mark.parametrize("clients", [1, 3])
@pytest.mark.parametrize("people", [40, 320, 1500])
@pytest.mark.parametrize("p", [0.2, 0.5])
def test_requests_of_many_people_have_the_share_each(p, people, clients):
    """All of a request are routed by the thresholds with which it began."""
    rng = np.random.default_rng(0)
    split = policy(normal(rng, 2000), p, rule="top")
    begun = [split.snapshot] * clients
    left = [people * (client + 1) // clients for client in range(clients)]
    hard, shares = [0] * clients, []
    while len(shares) < 40:
        for client in range(clients):
            score = float(normal(rng, 1)[0])
            route = begun[client].route(score)
            split.observe(score, route, own_p=True, revision=begun[client].revision)
            hard[client] += route is Route.hard
            left[client] -= 1
            if not left[client]:
                shares.append(hard[client] / people)
                begun[client], left[client], hard[client] = split.snapshot, people, 0
    settled = shares[4 * clients :]  # the first of each was cut short
    assert np.mean(settled) == pytest.approx(p, abs=0.03)
    assert np.std(settled) < 0.03 + math.sqrt(p * (1 - p) / people)


def test_k1_is_lowered_where_eq_8_runs_out_of_scores():
    scores = [index / 100 for index in range(100)]
    snapshot = policy(scores, 0.95, theta=0.3, mode="fixed").snapshot
    assert snapshot.k1_lowered
    assert snapshot.k2 == math.inf
    assert sum(snapshot.route(score) is Route.hard for score in scores) == 95


def test_equal_scores_report_the_share_that_can_be_reached_and_do_not_swing():
    split = policy([0.7] * 500, 0.3)
    assert split.snapshot.reachable == 0.0
    assert not send(split, [0.7] * 1000).any()
    split.configure(p=0.8, theta=0.1, mode="tracking", policy="band")
    assert split.snapshot.reachable == 1.0
    assert send(split, [0.7] * 1000).all()


def test_a_saturated_half_is_sent_whole_or_not_at_all():
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.uniform(0.2, 0.6, 500), np.full(500, 0.99)])
    split = policy(scores, 0.7)
    stream = rng.permutation(np.tile(scores, 3))
    saturated = {split.snapshot.route(0.99)}
    for score in map(float, stream):
        route = split.snapshot.route(score)
        split.observe(score, route, own_p=True)
        saturated.add(split.snapshot.route(0.99))
    assert len(saturated) == 1
    assert 0 <= split.snapshot.reachable <= 1
    assert abs(split.snapshot.reachable - 0.7) > 0.1


def test_a_request_with_its_own_p_reads_the_same_window_and_changes_nothing():
    rng = np.random.default_rng(0)
    split = policy(normal(rng, 2000), 0.5)
    before = split.snapshot
    own = split.for_p(0.9)
    assert (own.p, own.version, own.revision) == (0.9, before.version, before.revision)
    scores = normal(rng, 500)
    for score in map(float, scores[:15]):
        split.observe(score, own.route(score), own_p=False)
    assert split.snapshot is before
    assert split.realised() == (0, 0.0)
    assert np.mean([own.route(float(score)) is Route.hard for score in scores]) == pytest.approx(
        0.9, abs=0.05
    )


def test_the_version_counts_settings_and_the_revision_windows():
    rng = np.random.default_rng(0)
    split = policy(normal(rng, 2000))
    old = split.snapshot
    send(split, normal(rng, 10 * PEOPLE_PER_REVISION))
    assert (old.revision, split.snapshot.version, split.snapshot.revision) == (0, 1, 10)
    split.configure(p=0.1, theta=0.1, mode="tracking", policy="band")
    assert (split.snapshot.version, split.snapshot.revision) == (2, 10)


def test_realised_counts_people_since_the_last_change():
    rng = np.random.default_rng(0)
    split = policy(normal(rng, 2000))
    hard = send(split, normal(rng, 100))
    assert split.realised() == (100, hard.mean())
    split.configure(p=0.2, theta=0.1, mode="tracking", policy="band")
    assert split.realised() == (0, 0.0)
    send(split, normal(rng, 2500))
    assert split.realised()[0] == 2000


def test_drift_tells_other_pictures_from_those_of_the_calibration():
    rng = np.random.default_rng(0)
    same, other = policy(normal(rng, 2000)), policy(normal(rng, 2000))
    send(same, normal(rng, 1000))
    send(other, normal(rng, 1000, shift=2))
    assert same.drift() < 0.1 < 0.5 < other.drift() <= 1


@pytest.mark.parametrize("p", [0, 0.3, 1])
def test_with_top_nobody_is_extremely_hard(p: float) -> None:
    split = policy(np.linspace(0, 1, 300), p, rule="top").snapshot
    routes = {split.route(float(score)) for score in np.linspace(0, 1, 50)}
    assert Route.extremely_hard not in routes
    assert (Route.hard in routes) == (p > 0)
