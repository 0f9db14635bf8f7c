"""What every answer has, and what none has."""

import pytest

from tests.app.conftest import picture_of

ELSEWHERE = {"Origin": "https://elsewhere.example"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 200), ("GET", "/config", 200), ("GET", "/metrics", 200), ("GET", "/nowhere", 404)],
)
def test_no_answer_is_taken_for_another_type_than_it_says(client, method: str, path: str, status: int):
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.headers.get_list("x-content-type-options") == ["nosniff"]


def test_pages_of_other_sites_may_not_read_answers(client):
    for answer in (
        client.get("/config", headers=ELSEWHERE),
        client.post("/pose", files={"images": picture_of([0.45])}, headers=ELSEWHERE),
    ):
        assert answer.status_code == 200
        assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_pages_of_other_sites_may_not_change_anything(client):
    """A browser asks first, and needs a yes."""
    asks = {**ELSEWHERE, "Access-Control-Request-Method": "PATCH"}
    answer = client.options("/config", headers=asks)
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control-")]
