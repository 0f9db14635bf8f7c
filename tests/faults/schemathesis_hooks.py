"""What the OpenAPI document cannot say: that a picture is a picture. Loaded by schemathesis (see test_openapi.py)."""

import base64
from typing import Any

import schemathesis
from hypothesis import strategies as st

from tests.faults.mutate import pictures

PICTURES = pictures()

schemathesis.openapi.media_type("image/*", st.sampled_from(PICTURES))


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:  # noqa: ARG001
    """Base64 of pictures in the place of any text."""
    images = body.get("images") if isinstance(body, dict) else None
    for index, image in enumerate(images if isinstance(images, list) else ()):
        if isinstance(image, dict) and isinstance(image.get("data"), str):
            image["data"] = base64.b64encode(PICTURES[(len(image["data"]) + index) % len(PICTURES)]).decode()
    return body
