import asyncio

import pytest

from benchmarks.client import Client, RequestFailed
from benchmarks.processes import free_port
from tests.benchmarks.fake_service import PICTURES, FakeService


def test_an_answer_says_who_was_found_where_they_went_and_what_it_took() -> None:
    async def scenario() -> None:
        async with FakeService(delay=0.02).client() as client:
            answer = await client.pose(PICTURES[0])
        assert (answer.status, answer.people, answer.p, answer.routes) == (
            200,
            2,
            0.5,
            {"easy": 1, "hard": 1},
        )
        assert answer.timing_ms["detect"] == 5
        assert answer.seconds >= 0.02

    asyncio.run(scenario())


def test_time_counts_from_when_a_request_was_due() -> None:
    async def scenario() -> None:
        async with FakeService().client() as client:
            due = asyncio.get_running_loop().time()
            answer = await client.pose(PICTURES[0])
            late = await client.pose(PICTURES[0], answer.sent - 5)
        assert late.seconds > 5 > late.end - late.sent
        assert due < late.end

    asyncio.run(scenario())


def test_requests_one_after_the_other_share_a_connection() -> None:
    async def scenario() -> None:
        service = FakeService()
        async with service.client() as client:
            for picture in PICTURES * 3:
                await client.pose(picture)
        assert service.connections == 1
        assert len(service.posted) == 6

    asyncio.run(scenario())


def test_a_connection_that_the_server_has_closed_is_no_failure() -> None:
    async def scenario() -> None:
        service = FakeService(forgetful=True)
        async with service.client() as client:
            answers = [await client.pose(picture) for picture in PICTURES * 2]
        assert [answer.status for answer in answers] == [200] * 4
        assert len(service.posted) == 4

    asyncio.run(scenario())


def test_a_body_that_comes_in_pieces_is_put_together() -> None:
    async def scenario() -> None:
        async with FakeService(chunked=True).client() as client:
            assert (await client.pose(PICTURES[0])).people == 2
            assert await client.get_p() == 0.5

    asyncio.run(scenario())


def test_without_a_server_there_is_an_answer_of_status_0() -> None:
    answer = asyncio.run(Client(f"http://127.0.0.1:{free_port()}").pose(PICTURES[0]))
    assert answer.status == 0


def test_a_refused_change_of_p_is_an_error() -> None:
    async def scenario() -> None:
        async with FakeService(locked=True).client() as client:
            with pytest.raises(RequestFailed, match="PATCH /config: 401"):
                await client.set_p(0.25)

    asyncio.run(scenario())
