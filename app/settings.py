"""Settings from the environment (or a `.env` file), read once at start and never changed."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.logs import LogFormat
from app.policy import Mode
from calibration.thresholds.split import Policy
from models import defaults
from models.runtime import Device, Precision, Runtime

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
SomeSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


def _sendable(token: SecretStr) -> SecretStr:
    # RFC 6750 has no spaces in a token, nor can a header carry the line's end that a file leaves: nobody would get in.
    if not re.fullmatch(r"[!-~]+", token.get_secret_value()):
        raise ValueError("must be of printable ASCII characters without spaces or line ends")
    return token


Token = Annotated[SecretStr, AfterValidator(_sendable)]


class SettingsError(Exception):
    """The environment is not usable; the message is one line that names the variable."""


class Settings(BaseSettings):
    """Every setting with its unit; the environment variable is the name in capitals."""

    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True)

    host: str = Field("0.0.0.0", description="address to listen on")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(
        8000, description="port to listen on, 0 for any free one"
    )

    device: Device = Field("auto", description="auto, cpu or cuda")
    precision: Precision = Field(
        "auto",
        description="arithmetic of detector and pose nets: auto (detector in int8 where it pays), fp32, bf16, fp16",
    )
    runtime: Runtime = Field(
        "auto", description="what runs the networks: auto, eager (PyTorch), openvino (CPU), cudagraphs (CUDA)"
    )
    threads: Annotated[int, Field(ge=0)] = Field(
        0, description="CPU threads of each network that runs; 0: a quarter of the cores"
    )
    pair: str = Field(
        "embedded", description="`embedded`, a fetched pair's name, or a folder with pair.json and weights"
    )
    small: str | None = Field(None, description="FILE or NAME=FILE: another small pose net than the pair's")
    large: str | None = Field(None, description="FILE or NAME=FILE: another large pose net than the pair's")
    detector: str | None = Field(None, description="FILE or NAME=FILE: another detector than the pair's")
    router: str | None = Field(None, description="FILE or NAME=FILE: another router than the pair's")

    p: Fraction = Field(defaults.P, description="share of people for the large net, fraction 0 to 1")
    theta: Fraction | None = Field(
        None,
        description="for band: k1 = min + theta (max - min) of the scores, 0 to 1; unset: as in the calibration file",
    )
    mode: Mode = Field(
        defaults.MODE, description="tracking: hold the share as pictures change; fixed: do not"
    )
    policy: Policy = Field(
        defaults.POLICY,
        description="who is hard: top: the highest scores; band: those above k1, but not the highest (the paper's)",
    )
    min_score: Fraction = Field(
        defaults.MIN_SCORE, description="detections below this score are dropped, 0 to 1"
    )
    flip_test: bool = Field(
        False, description="average with the mirrored crop, twice the cost of the pose nets"
    )
    max_people: Positive = Field(
        defaults.MAX_PEOPLE,
        lt=defaults.MAX_DETECTIONS,  # or it could not be told that there were more
        description="people per picture at most, the best-scored are kept",
    )

    max_body_bytes: Positive = Field(64 * 2**20, description="bytes of one request")
    max_image_bytes: Positive = Field(20 * 2**20, description="bytes of one encoded picture")
    max_image_pixels: Positive = Field(25_000_000, description="pixels of one picture, from its header")
    max_images: Positive = Field(16, description="pictures in one request")
    max_boxes: Positive = Field(100, description="given boxes per picture")
    max_pending_pictures: Positive = Field(64, description="pictures admitted and not yet answered")
    max_pending_bytes: Positive = Field(
        1_500_000_000, description="bytes of those pictures, as sent and as if all were decoded"
    )

    body_timeout_s: SomeSeconds = Field(
        30, description="seconds for a request's head, and then its body, to arrive"
    )
    keep_alive_s: Positive = Field(
        75, description="seconds a connection may rest between requests; let a balancer keep it for less"
    )
    deadline_ms: Positive = Field(
        30_000, description="milliseconds until a request that names none is answered 504"
    )
    max_passed_over_ms: Seconds = Field(
        200, description="milliseconds an extremely hard person waits behind easy ones"
    )
    drain_delay_s: Seconds = Field(
        0, description="seconds between SIGTERM and closing the port; 5 behind a balancer"
    )
    shutdown_grace_s: Positive = Field(
        35, description="seconds that admitted requests have to finish after that"
    )
    stall_s: SomeSeconds = Field(60, description="seconds of one batch after which its stage counts as dead")

    calibration: str | None = Field(None, description="file of CALIBRATION_DIR; unset: the pair's own")
    calibration_dir: Path | None = Field(None, description="folder of calibration files that PATCH may load")
    state_file: Path | None = Field(
        None, description="file that keeps PATCHed settings over a restart, and then wins"
    )

    admin_token: Token | None = Field(None, description="bearer token that PATCH /config needs")
    pose_token: Token | None = Field(None, description="bearer token that POST /pose needs")
    log_format: LogFormat = Field(
        "auto", description="json: one object a line; text; auto: text at a terminal, else json"
    )
    web_concurrency: Positive = Field(1, description="must be 1: one process owns the device")

    @property
    def body_limit(self) -> int:
        """Bytes that a request may have: for more than may be pending there would never be room."""
        return min(self.max_body_bytes, self.max_pending_bytes)

    @model_validator(mode="after")
    def _one_process(self) -> "Settings":
        if self.web_concurrency > 1:
            raise ValueError(
                "WEB_CONCURRENCY must be 1: one process owns the device and the split. "
                "Run one container per device behind a load balancer instead"
            )
        return self


def load_settings() -> Settings:
    """Raises SettingsError."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]).upper()
        message = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"{name}: {message}" if name else message) from error
    except OSError as error:
        raise SettingsError(f"{error.filename} cannot be read: {error.strerror}") from error


def env_example() -> str:
    """`.env.example`: every setting with its unit and default, commented out."""
    lines = [
        "# Copy to .env and change what you need. A variable of the environment wins over this file.",
        "",
    ]
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else field.default
        shown = str(default).lower() if isinstance(default, bool) else default
        lines += [f"# {field.description}", f"# {name.upper()}={shown}", ""]
    return "\n".join(lines)
