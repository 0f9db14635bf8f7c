import asyncio
from types import SimpleNamespace

import pytest

from app.admission import Admission, Ahead, Room, TooLarge
from app.batching import Overloaded


def admitted(admission: Admission, pictures: int, size: int) -> Room:
    room = Room(admission)
    room.take(pictures, size)
    return room


def test_rule_4_room_is_bounded_in_pictures_and_bytes_for_the_whole_request():
    admission = Admission(max_pictures=4, max_bytes=1000)
    with admitted(admission, 3, 500):
        with pytest.raises(Overloaded) as refusal, admitted(admission, 2, 10):
            pass
        assert refusal.value.retry_after_s >= 1
        with pytest.raises(Overloaded), admitted(admission, 1, 501):
            pass
        with admitted(admission, 1, 500):
            pass
    assert (admission.pictures, admission.bytes) == (0, 0)
    with pytest.raises(TooLarge), admitted(admission, 5, 1):
        pass
    with pytest.raises(TooLarge), admitted(admission, 1, 1001):
        pass
    with admitted(admission, 0, 400) as room:
        with pytest.raises(TooLarge):
            room.take(1, 700)  # with its own body never, however long it waits
        room.take(1, 600)
        assert (admission.pictures, admission.bytes) == (1, 1000)
    assert (admission.pictures, admission.bytes) == (0, 0)


def test_bytes_of_a_body_need_no_place_of_a_picture():
    admission = Admission(max_pictures=4, max_bytes=1000)
    with admitted(admission, 0, 100) as begun, admitted(admission, 4, 500):
        with pytest.raises(Overloaded):
            admission.check(1, 0)
        begun.take(0, 400)  # who was let in is not sent away half-way
        with pytest.raises(Overloaded):
            begun.take(0, 1)


def test_an_answer_counts_while_it_is_taken_and_is_never_refused():
    admission = Admission(max_pictures=4, max_bytes=1000)
    with admission.sending(1500), pytest.raises(Overloaded):
        admitted(admission, 0, 1)
    assert admission.bytes == 0


def test_rule_4_room_is_given_back_when_the_work_fails():
    admission = Admission(max_pictures=1, max_bytes=10)
    with pytest.raises(RuntimeError), admitted(admission, 1, 10):
        raise RuntimeError
    with admitted(admission, 1, 10):
        pass


def test_a_refusal_says_when_half_of_what_is_pending_will_be_done(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("app.admission.time", SimpleNamespace(monotonic=lambda: now[0]))
    admission = Admission(max_pictures=40, max_bytes=1000)
    with admitted(admission, 1, 1):
        pass  # long ago: does not count
    now[0] += 3600
    with admitted(admission, 39, 1):
        assert admission.retry_after_s() == 1  # nothing is known yet
        for _ in range(11):
            with admitted(admission, 1, 1):
                now[0] += 0.5  # two a second
        with pytest.raises(Overloaded) as refusal, admitted(admission, 2, 1):
            pass
    assert refusal.value.retry_after_s == pytest.approx(39 / 2 / 2, abs=2)


def test_a_refusal_never_asks_for_more_than_a_minute(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("app.admission.time", SimpleNamespace(monotonic=lambda: now[0]))
    admission = Admission(max_pictures=40, max_bytes=1000)
    with admitted(admission, 38, 1):
        for _ in range(3):
            with admitted(admission, 1, 1):
                now[0] += 1000
        assert admission.retry_after_s() == 60


def test_so_many_pictures_are_decoded_ahead_and_the_others_wait_in_their_order():
    async def run():
        ahead, entered = Ahead(2), []
        go_on = [asyncio.Event() for _ in range(4)]

        async def picture(number):
            async with ahead.place(ahead.turn()):
                entered.append(number)
                await go_on[number].wait()

        tasks = [asyncio.create_task(picture(number)) for number in range(4)]
        await asyncio.sleep(0)
        assert (entered, ahead.depth) == ([0, 1], 2)
        tasks[2].cancel()  # its client has gone
        await asyncio.wait([tasks[2]])
        assert ahead.depth == 1
        go_on[1].set()
        await tasks[1]
        assert (entered, ahead.depth) == ([0, 1, 3], 0)
        for event in go_on:
            event.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with ahead.place(ahead.turn()), ahead.place(ahead.turn()):  # all places are back
            pass

    asyncio.run(asyncio.wait_for(run(), 10))


def test_heavy_pictures_leave_places_to_others():
    async def run():
        ahead, entered, go_on = Ahead(8), [], asyncio.Event()

        async def picture(name, heavy):
            async with ahead.place(ahead.turn(), heavy=heavy):
                entered.append(name)
                await go_on.wait()

        heavy = [asyncio.create_task(picture(number, True)) for number in range(10)]
        light = [asyncio.create_task(picture("light", False)) for _ in range(2)]
        await asyncio.sleep(0)
        assert (entered, ahead.depth) == ([0, 1, "light", "light"], 8)
        go_on.set()
        await asyncio.gather(*heavy, *light)
        assert ahead.depth == 0

    asyncio.run(asyncio.wait_for(run(), 10))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_request_of_many_pictures_leaves_places_to_others(size):
    async def run():
        ahead, entered, over = Ahead(size), [], asyncio.Event()

        async def picture(name, turn):
            async with ahead.place(turn):
                entered.append(name)
                await over.wait()

        turn = ahead.turn()
        tasks = [asyncio.create_task(picture("many", turn)) for _ in range(6)]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(picture("other", ahead.turn())))
        await asyncio.sleep(0)
        assert entered == {1: ["many"], 2: ["many", "other"], 4: ["many", "many", "other"]}[size]
        assert ahead.depth == 7 - len(entered)
        over.set()
        await asyncio.gather(*tasks)
        assert ahead.depth == 0

    asyncio.run(asyncio.wait_for(run(), 10))
