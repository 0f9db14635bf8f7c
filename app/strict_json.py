"""JSON as a careful service reads it: no doubled keys, no NaN or infinity, no nesting that exhausts the stack."""

import json
import math
from typing import Any


class NotJson(ValueError):
    """The bytes are not JSON at all."""


class RefusedJson(ValueError):
    """JSON, but with a doubled key or a number that is not finite."""


def loads(data: bytes, *, finite: bool = True) -> Any:
    """`finite=False` lets NaN and infinity through, for a caller that names where they are.

    Raises NotJson or RefusedJson, with a sentence for the client."""
    number, constant = (_finite, _constant) if finite else (float, float)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotJson("the body is not UTF-8") from error
    try:
        return json.loads(text, object_pairs_hook=_object, parse_float=number, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise NotJson(f"broken JSON: {error.msg} at character {error.pos}") from error
    except RefusedJson:
        raise
    except RecursionError as error:
        raise NotJson("the JSON is nested too deeply") from error
    except ValueError as error:
        raise NotJson("the JSON has an integer of too many digits") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise RefusedJson(f"the key {name[:64]!r} is there twice")
        found[name] = value
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise RefusedJson(f"{text[:32]} is not a finite number")
    return value


def _constant(text: str) -> float:
    raise RefusedJson(f"{text} is not a finite number")
