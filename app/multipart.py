"""multipart/form-data held in memory: no part is ever spooled to disk, and a body that is cut off is an error."""

from typing import NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import ApiError


class Part(NamedTuple):
    """One part of the form; `file_name` is empty for a plain field."""

    name: bytes
    file_name: bytes
    content: bytes


def read_parts(body: bytes, boundary: bytes, max_parts: int) -> list[Part]:
    """The parts in their order. Raises ApiError: 400 for a body that is broken or cut off, 413 for too many parts."""
    if not boundary:
        raise ApiError(400, "bad_request", "the Content-Type names no boundary")
    too_many = ApiError(413, "too_large", f"more than {max_parts} parts")
    # The parser takes long over each, even where no part begins.
    if body.count(b"\r\n--" + boundary) > max_parts + 1:
        raise too_many
    parts: list[Part] = []
    header: list[bytes] = [b"", b""]
    disposition = b""
    content: list[bytes] = []
    ended = False

    def part_begin() -> None:
        nonlocal disposition
        if len(parts) == max_parts:
            raise too_many
        disposition = b""
        content.clear()

    def header_begin() -> None:
        header[:] = [b"", b""]

    def header_field(data: bytes, start: int, end: int) -> None:
        header[0] += data[start:end]

    def header_value(data: bytes, start: int, end: int) -> None:
        header[1] += data[start:end]

    def header_end() -> None:
        nonlocal disposition
        if header[0].lower() == b"content-disposition":
            disposition = header[1]

    def part_data(data: bytes, start: int, end: int) -> None:
        content.append(data[start:end])

    def part_end() -> None:
        kind, options = parse_options_header(disposition)
        if kind != b"form-data" or not options.get(b"name"):
            raise ApiError(400, "bad_request", "a part has no name")
        parts.append(Part(options[b"name"], options.get(b"filename", b""), b"".join(content)))

    def end() -> None:
        nonlocal ended
        ended = True

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": part_begin,
                "on_header_begin": header_begin,
                "on_header_field": header_field,
                "on_header_value": header_value,
                "on_header_end": header_end,
                "on_part_data": part_data,
                "on_part_end": part_end,
                "on_end": end,
            },
        )
        parser.write(body)
    except FormParserError as error:
        raise ApiError(400, "bad_request", "broken multipart body") from error
    if not ended:
        raise ApiError(400, "bad_request", "the multipart body is cut off before its last boundary")
    return parts
