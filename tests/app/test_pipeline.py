"""The way of a picture with queues that answer when the test lets them."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from app.batching import Ticket
from app.intake import Picture
from app.metrics import Metrics
from app.pipeline import Keypoints, PersonItem, Pipeline, PoseOptions, PoseRequest, Queues, Score
from app.policy import Route, SplitPolicy

HARD = 0.47
SCORES = [0.4 + index / 5000 for index in range(1001)]


@dataclass(frozen=True)
class Scores:
    """The difficulty of the person whose box begins at x is the x-th answer."""

    answers: Sequence[asyncio.Future[float]]

    async def submit(self, item: PersonItem, _: Ticket) -> Score:
        return Score(await self.answers[int(item.bbox[0])], None)


class Poses:
    async def submit(self, _: PersonItem, __: Ticket) -> Keypoints:
        return [[1.0, 2.0, 0.9]] * 17


def split_policy() -> SplitPolicy:
    """At p = 0.5, k1 is 0.42 and k2 0.52."""
    return SplitPolicy(SCORES, p=0.5, theta=0.1, mode="fixed", policy="band")


def test_people_of_one_request_keep_its_split_through_a_change() -> None:
    async def scenario() -> None:
        policy = split_policy()
        first, second = (asyncio.get_running_loop().create_future() for _ in range(2))
        poses = Poses()
        queues = Queues(*cast(Any, (None, Scores([first, second]), poses, poses, poses)))
        pipeline = Pipeline(queues, policy, Metrics(version="", pair="", device="", runtime=""))
        options = PoseOptions(p=None, estimator="auto", min_score=0.3, max_people=9, flip_test=False)
        request = PoseRequest(Ticket("request", 0.0), options)
        picture = Picture(torch.zeros(4, 4, 3, dtype=torch.uint8), None, 4, 4)
        answer = asyncio.create_task(pipeline.pose(picture, [(0, 0, 4, 4), (1, 0, 3, 4)], request))
        first.set_result(HARD)
        while not policy.realised()[0]:
            await asyncio.sleep(0)
        policy.configure(p=0.0, theta=0.1, mode="fixed", policy="band")
        second.set_result(HARD)
        assert [person.route for person in (await answer).people] == [Route.hard] * 2
        assert request.split is not None
        assert (request.split.version, policy.snapshot.version) == (1, 2)
        assert policy.realised() == (0, 0.0)  # who was routed by the old p says nothing of the new one

    asyncio.run(asyncio.wait_for(scenario(), 10))
