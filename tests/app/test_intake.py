"""Request bodies in three forms become uploads; whatever else is sent becomes an error for the client."""

import asyncio
import base64
import io
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.requests import Request

from app.batching import ClientGone
from app.errors import ApiError
from app.intake import Upload, examine, plain_name, read, to_picture
from app.settings import Settings

LIMITS = Settings(
    _env_file=None,
    max_body_bytes=20_000,
    max_image_bytes=5_000,
    max_image_pixels=10_000,
    max_images=3,
    max_boxes=4,
    body_timeout_s=0.05,
)
MULTIPART = "multipart/form-data; boundary=XX"
GONE = object()
STUCK = object()


def picture(width: int = 20, height: int = 10) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


PNG = picture()


class Sender:
    """A client that sends `chunks`, then ends the body, hangs up (GONE) or falls silent (STUCK)."""

    def __init__(self, chunks: Sequence[object]) -> None:
        self.chunks = list(chunks)
        self.taken = 0

    async def __call__(self) -> dict[str, Any]:
        chunk = self.chunks[self.taken] if self.taken < len(self.chunks) else b""
        self.taken += 1
        if chunk is GONE:
            return {"type": "http.disconnect"}
        if chunk is STUCK:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": chunk, "more_body": self.taken < len(self.chunks)}


def send(
    chunks: bytes | Sequence[object], media_type: str | None, sender: Sender | None = None, **headers: str
) -> list[Upload]:
    all_headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if media_type is not None:
        all_headers["content-type"] = media_type
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/pose",
        "query_string": b"",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in all_headers.items()],
    }
    sender = sender or Sender([chunks] if isinstance(chunks, bytes) else chunks)
    return asyncio.run(read(Request(scope, sender), LIMITS))


def refusal(chunks: bytes | Sequence[object], media_type: str | None, **headers: str) -> ApiError:
    with pytest.raises(ApiError) as refused:
        send(chunks, media_type, **headers)
    return refused.value


def code(error: ApiError) -> tuple[int, str]:
    return error.status, error.code


def part(content: bytes, name: str = "images", file_name: str | None = "a.png") -> bytes:
    file = "" if file_name is None else f'; filename="{file_name}"'
    return f'--XX\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--XX--\r\n"


def document(**image: Any) -> bytes:
    return json.dumps({"images": [{"data": base64.b64encode(PNG).decode()} | image]}).encode()


def test_a_picture_itself_may_be_the_body() -> None:
    assert send(PNG, "image/png") == [Upload(PNG)]
    assert send([PNG[:7], PNG[7:]], "Image/JPEG; q=1") == [Upload(PNG)]


def test_a_form_may_have_several_pictures_with_their_names() -> None:
    uploads = send(form(part(PNG, file_name="a.png"), part(b"two\r\n--X", file_name="b.jpg")), MULTIPART)
    assert uploads == [Upload(PNG, "a.png"), Upload(b"two\r\n--X", "b.jpg")]


def test_a_form_may_come_in_any_chunks_and_with_a_preamble_and_an_epilogue() -> None:
    body = b"\r\n" + form(part(PNG)) + b"epilogue"
    assert send([body[i : i + 1] for i in range(len(body))], MULTIPART) == [Upload(PNG, "a.png")]


def test_the_part_boxes_has_a_list_or_null_for_each_picture() -> None:
    boxes = part(b"[[[1, 2, 3.5, 4]], null, []]", "boxes", None)
    for body in (form(part(PNG), part(PNG), part(PNG), boxes), form(boxes, part(PNG), part(PNG), part(PNG))):
        assert [upload.boxes for upload in send(body, MULTIPART)] == [[(1, 2, 3.5, 4)], None, []]


def test_json_may_have_boxes_and_an_image_id() -> None:
    (upload,) = send(document(boxes=[[0, -1.5, 3, 4]], image_id=397133), "application/json; charset=utf-8")
    assert upload == Upload(PNG, None, 397133, [(0, -1.5, 3, 4)])
    assert send(document(boxes=[], image_id="night/1"), "application/json")[0].boxes == []
    assert send(document(boxes=None), "application/json")[0].boxes is None


@pytest.mark.parametrize(
    ("given_name", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\me.jpg", "me.jpg"),
        ("été 😀.jpg", "été 😀.jpg"),
        ("a\x00b\x1b[31m\u202egpj.exe", "ab[31mgpj.exe"),
        ("x" * 300, "x" * 255),
        ("dir/", None),
        ("", None),
    ],
)
def test_of_a_file_name_only_the_harmless_part_is_kept(given_name: str, kept: str | None) -> None:
    assert plain_name(given_name.encode()) == kept


def test_a_file_name_that_is_not_utf8_is_kept_as_far_as_it_goes() -> None:
    assert plain_name(b"a\xff.jpg") == "a\ufffd.jpg"


@pytest.mark.parametrize(
    "media_type",
    [None, "", "text/plain", "application/octet-stream", "application/x-www-form-urlencoded", ";;=\xff"],
)
def test_other_content_types_are_unsupported(media_type: str | None) -> None:
    assert code(refusal(PNG, media_type)) == (415, "unsupported_media_type")


@pytest.mark.parametrize("encoding", ["gzip", "identity, gzip", "br", "\xff"])
def test_a_compressed_body_is_unsupported(encoding: str) -> None:
    error = refusal(PNG, "image/png", content_encoding=encoding)
    assert code(error) == (415, "unsupported_media_type")
    assert error.headers == {"Connection": "close"}
    assert send(PNG, "image/png", content_encoding="Identity") == [Upload(PNG)]


@pytest.mark.parametrize(
    ("media_type", "limit"), [("image/png", 5_000), (MULTIPART, 20_000), ("application/json", 20_000)]
)
def test_a_body_announced_too_large_is_refused_before_it_is_read(media_type: str, limit: int) -> None:
    sender = Sender([bytes(10)])
    with pytest.raises(ApiError) as refused:
        send(b"", media_type, sender, content_length=str(limit + 1))
    assert code(refused.value) == (413, "too_large")
    assert refused.value.headers == {"Connection": "close"}
    assert sender.taken == 0


@pytest.mark.parametrize("headers", [{}, {"content_length": "10"}])
def test_a_body_is_counted_whatever_was_announced(headers: dict[str, str]) -> None:
    sender = Sender([bytes(1_000)] * 100)
    with pytest.raises(ApiError) as refused:
        send(b"", "image/png", sender, **headers)
    assert code(refused.value) == (413, "too_large")
    assert refused.value.headers == {"Connection": "close"}
    assert sender.taken == 6


def test_a_body_of_exactly_the_limit_is_read() -> None:
    assert send(bytes(5_000), "image/png", content_length="5000") == [Upload(bytes(5_000))]


def test_a_body_that_does_not_come_is_timed_out() -> None:
    error = refusal([PNG[:5], STUCK], "image/png")
    assert code(error) == (408, "timeout")
    assert error.headers == {"Connection": "close"}


def test_a_client_that_hangs_up_while_sending_is_gone() -> None:
    with pytest.raises(ClientGone):
        send([PNG[:5], GONE], "image/png")


@pytest.mark.parametrize("announced", ["1000", "1e3", "-1", "", "²", "٣", "9" * 5_000])
def test_a_body_that_does_not_match_its_length_is_a_bad_request(announced: str) -> None:
    scope_length = announced.encode().decode("latin-1")
    assert code(refusal(PNG, "image/png", content_length=scope_length)) == (400, "bad_request")


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (form(part(PNG)), "multipart/form-data"),
        (form(part(PNG)), "multipart/form-data; boundary="),
        (form(part(PNG)), "multipart/form-data; boundary=YY"),
        (form(part(PNG)), "multipart/form-data; boundary=" + "X" * 300),
        (form(part(PNG))[:-4], MULTIPART),
        (form(part(PNG))[:-20], MULTIPART),
        (form(part(PNG), part(PNG))[:60], MULTIPART),
        (b"", MULTIPART),
        (b"hello", MULTIPART),
        (b"--XX\r\n\r\nno headers\r\n--XX--\r\n", MULTIPART),
        (b'--XX\r\nContent-Disposition: form-data; filename="a"\r\n\r\nno name\r\n--XX--\r\n', MULTIPART),
        (b'--XX\r\nContent-Disposition: attachment; name="images"\r\n\r\n\r\n--XX--\r\n', MULTIPART),
        (form(part(PNG, file_name="x" * 20_000 + ".png"))[:19_000], MULTIPART),
        (form(part(PNG, file_name="x" * 10_000)), MULTIPART),
        (b"--XX\r\n" + b"A: b\r\n" * 100 + b"\r\n\r\n--XX--\r\n", MULTIPART),
    ],
)
def test_a_broken_or_cut_off_form_is_a_bad_request(body: bytes, media_type: str) -> None:
    assert code(refusal(body, media_type)) == (400, "bad_request")


def test_junk_around_a_form_is_not_logged_byte_by_byte(caplog: pytest.LogCaptureFixture) -> None:
    for body in (b"\r\n" * 5_000 + form(part(PNG)), form(part(PNG)) + b"junk" * 3_000, b"junk" * 4_000):
        with suppress(ApiError):
            send(body, MULTIPART)
    assert len(caplog.records) <= 6


@pytest.mark.parametrize(
    "body",
    [
        form(),
        form(part(PNG, "image")),
        form(part(PNG), part(b"x", "notes", None)),
        form(part(b"[]", "boxes", None)),
        form(part(PNG), part(b"[null]", "boxes"), part(b"[null]", "boxes")),
    ],
)
def test_a_form_without_pictures_or_with_other_parts_is_invalid(body: bytes) -> None:
    assert code(refusal(body, MULTIPART)) == (422, "invalid_parameter")


FIVE_BOXES = [[1, 1, 2, 2]] * 5


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (form(*[part(b"x")] * 4), MULTIPART),
        (form(*[part(b"x")] * 300), MULTIPART),
        (form(part(b"\r\n--XX-" * 300)), MULTIPART),
        (form(part(PNG), part(json.dumps([FIVE_BOXES]).encode(), "boxes", None)), MULTIPART),
        (form(part(PNG), part(b"[" + b"[]," * 5_000 + b"[]]", "boxes", None)), MULTIPART),
        (json.dumps({"images": [{"data": ""}] * 4}).encode(), "application/json"),
        (document(boxes=FIVE_BOXES), "application/json"),
        (b"[" + b"[]," * 5_000 + b"[]]", "application/json"),
        (b'{"a":' * 3_900, "application/json"),
    ],
)
def test_too_many_pictures_parts_boxes_or_values_are_too_large(body: bytes, media_type: str) -> None:
    assert code(refusal(body, media_type)) == (413, "too_large")


BAD_BOXES = [
    "[0,0,NaN,1]",
    "[0,0,1e400,1]",
    "[-Infinity,0,1,1]",
    "[0,0,0,1]",
    "[0,0,1,-1]",
    "[0,0,1]",
    "[0,0,1,1,1]",
]
BAD_BOXES += [
    '[0,0,"1",1]',
    "[0,0,true,1]",
    "[0,0,null,1]",
    "[0,0,1e300,1]",
    '{"x":0,"y":0,"w":1,"h":1}',
    "7",
    "null",
]
BAD_BOXES += ["[0,0,1e-320,1]", f"[{'9' * 4000},0,1,1]"]


@pytest.mark.parametrize("box", BAD_BOXES)
def test_a_bad_box_is_refused_with_its_place(box: str) -> None:
    error = refusal(
        form(part(PNG), part(PNG), part(f"[[],[[1,1,2,2],{box}]]".encode(), "boxes", None)), MULTIPART
    )
    assert code(error) == (422, "invalid_box")
    assert error.detail.startswith("image 1, box 1: ")
    body = document(boxes=["HERE"]).replace(b'"HERE"', box.encode())
    error = refusal(body, "application/json")
    assert code(error) == (422, "invalid_box")
    assert error.detail.startswith("image 0, box 0: ")


@pytest.mark.parametrize("boxes", ["[]", "[null, null]", "{}", "[1]", "null"])
def test_lists_of_boxes_that_do_not_match_the_pictures_are_refused(boxes: str) -> None:
    error = refusal(form(part(PNG), part(boxes.encode(), "boxes", None)), MULTIPART)
    assert code(error) == (422, "invalid_box")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 200,
        b'{"images": [{"data": "AAA"}]}',
        b'{"images": [{"data": "A*AA"}]}',
        '{"images": [{"data": "ÄÄÄÄ"}]}'.encode(),
        b'{"images": [{"data": "AA\\nAA"}]}',
    ],
)
def test_broken_json_and_bad_base64_are_bad_requests(body: bytes) -> None:
    assert code(refusal(body, "application/json")) == (400, "bad_request")


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"null",
        b"{}",
        b'{"images": []}',
        b'{"images": {}}',
        b'{"images": [7]}',
        b'{"images": [{}]}',
        b'{"images": [{"data": 7}]}',
        b'{"images": [{"data": ""}], "url": "http://example.org"}',
        b'{"images": [{"data": "", "url": "http://example.org"}]}',
        b'{"images": [{"data": "", "data": ""}]}',
        b'{"images": [{"data": "", "image_id": true}]}',
        b'{"images": [{"data": "", "image_id": 1.5}]}',
        b'{"images": [{"data": "", "image_id": NaN}]}',
        b'{"images": [{"data": "", "image_id": "\\ud800"}]}',
        b'{"images": [{"data": "", "\\ud800": 1}]}',
        b'{"\\ud800": 1}',
        b'{"boxes": [], "images": [{"data": ""}]}',
    ],
)
def test_json_of_another_shape_is_invalid(body: bytes) -> None:
    error = refusal(body, "application/json")
    assert code(error) == (422, "invalid_parameter")
    assert error.detail.encode()  # can be sent: no lone surrogate of the client's


def test_an_empty_file_is_an_upload_whose_picture_is_invalid() -> None:
    first, second = send(form(part(b""), part(PNG)), MULTIPART)
    with pytest.raises(ApiError) as refused:
        examine(first, LIMITS)
    assert code(refused.value) == (422, "invalid_image")
    assert examine(second, LIMITS).width == 20


@pytest.mark.parametrize("data", [PNG + bytes(5_000), picture(101, 100)])
def test_a_picture_of_too_many_bytes_or_pixels_is_too_large(data: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        examine(Upload(data), LIMITS)
    assert code(refused.value) == (413, "too_large")


def test_a_picture_keeps_its_name() -> None:
    found = to_picture(Upload(PNG, "a.png", 7, [(0, 0, 1, 1)]), torch.device("cpu"))
    assert (found.name, found.width, found.height) == ("a.png", 20, 10)
    assert found.pixels.shape == (10, 20, 3)


@pytest.mark.parametrize("box", [(-5, -5, 6, 6), (19, 9, 5, 5), (-100, -100, 300, 300), (0, 0, 20, 10)])
def test_a_box_may_reach_over_the_edge(box: tuple[float, float, float, float]) -> None:
    assert to_picture(Upload(PNG, boxes=[box]), torch.device("cpu")).width == 20


@pytest.mark.parametrize(
    "box", [(20, 0, 5, 5), (0, 10, 5, 5), (-5, 0, 5, 5), (0, -5, 5, 5), (1e8, 1e8, 1e8, 1e8)]
)
def test_a_box_outside_the_picture_is_refused_with_its_index(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(ApiError, match="box 1 lies outside") as refused:
        to_picture(Upload(PNG, boxes=[(0, 0, 1, 1), box]), torch.device("cpu"))
    assert code(refused.value) == (422, "invalid_box")


def check(body: bytes, media_type: str) -> None:
    """Uploads or an error that the client can be told."""
    try:
        uploads = send(body, media_type)
    except ApiError as error:
        status = error.status
    else:
        status = 200
        assert all(math.isfinite(value) for upload in uploads for box in upload.boxes or () for value in box)
    assert status in (200, 400, 413, 415, 422)


FORM = form(part(PNG), part(PNG), part(b"[[[1, 2, 3, 4]], null]", "boxes", None))
EDITS = st.lists(
    st.tuples(st.floats(0, 0.999), st.binary(max_size=3), st.integers(0, 9)), min_size=1, max_size=5
)


def mutated(data: bytes, edits: list[tuple[float, bytes, int]]) -> bytes:
    """Each edit is a place, bytes to put there and how many to take away."""
    changed = bytearray(data)
    for where, new, taken in edits:
        at = int(where * len(changed))
        changed[at : at + taken] = new
    return bytes(changed)


@settings(max_examples=300, deadline=None)
@given(EDITS, st.sampled_from([MULTIPART, 'multipart/form-data; boundary="XX"']) | st.text(max_size=30))
def test_a_damaged_form_gives_uploads_or_an_error_for_the_client(
    edits: list[tuple[float, bytes, int]], media_type: str
) -> None:
    check(mutated(FORM, edits), media_type.encode().decode("latin-1"))


@settings(max_examples=300, deadline=None)
@given(EDITS)
def test_damaged_json_gives_uploads_or_an_error_for_the_client(edits: list[tuple[float, bytes, int]]) -> None:
    check(mutated(document(boxes=[[1, 2, 3, 4]], image_id="x"), edits), "application/json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("AAAA"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["images", "data", "boxes", "image_id", "x"]), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(JSON | st.fixed_dictionaries({"images": st.lists(JSON, max_size=3)}))
def test_json_of_any_shape_gives_uploads_or_an_error_for_the_client(value: Any) -> None:
    check(json.dumps(value).encode(), "application/json")
