"""The ingress's ends of the way to the replicas, without a cluster. Without Ray's package nothing of this runs."""

import asyncio
import warnings
from contextlib import nullcontext
from contextvars import ContextVar
from types import SimpleNamespace

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what Ray is warned of while it is imported
    pytest.importorskip("ray.serve")

from app.batching import Ticket
from deploy.ray_serve import Ingress
from deploy.ray_stages import RemoteQueue

pytestmark = pytest.mark.filterwarnings("default")


def test_people_of_two_requests_go_out_each_in_the_context_of_its_own():
    """By it Serve cancels what was asked for a client that hangs up."""
    request: ContextVar[str] = ContextVar("request")
    seen = []

    class Stage:
        limit = 4

        async def ask(self, _, items, ticket):
            seen.append((ticket.request_id, request.get()))
            return items

    queue = RemoteQueue("hard", Stage())

    async def ask(name: str) -> None:
        request.set(name)
        await queue.submit(SimpleNamespace(picture=name), Ticket(name, 0.0))

    async def both() -> None:
        await asyncio.gather(ask("first"), ask("second"))

    asyncio.run(both())
    assert seen == [("first", "first"), ("second", "second")]


@pytest.mark.parametrize(
    ("failure", "healthy"), [(None, True), ("the large net's replicas do not start", False)]
)
def test_an_ingress_that_could_not_load_asks_to_be_replaced(failure, healthy):
    state = SimpleNamespace(service=SimpleNamespace(failure=failure))
    with nullcontext() if healthy else pytest.raises(RuntimeError, match=failure):
        Ingress.check_health(SimpleNamespace(_app=SimpleNamespace(state=state)))
