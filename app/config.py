"""What an operator may change while the service runs: checked whole, applied whole, kept in STATE_FILE if set."""

import json
import logging
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.errors import ApiError
from app.policy import Mode, SplitPolicy
from app.settings import Fraction, Settings
from app.strict_json import NotJson, RefusedJson, loads
from calibration.thresholds import Calibration, read_calibration
from calibration.thresholds.split import Policy
from models import defaults
from models.zoo import Manifest

log = logging.getLogger("dynpose.config")

PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\.json")


class ConfigError(Exception):
    """The service cannot start with this configuration; one line says why."""


class ConfigPatch(BaseModel):
    """A JSON Merge Patch (RFC 7396) of the configuration: the members to change."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [{"p": 0.25}, {"p": 0.5, "mode": "fixed"}, {"calibration": "night.json"}]
        },
    )

    p: Fraction = Field(defaults.P, description="share of people for the large net, a fraction from 0 to 1")
    theta: Fraction = Field(
        defaults.THETA, description="for `band`: k1 = min + theta (max - min) of the scores, 0 to 1 (eq. 7)"
    )
    mode: Mode = Field(
        defaults.MODE, description="`tracking` holds the share as pictures change, `fixed` does not"
    )
    policy: Policy = Field(
        defaults.POLICY,
        description="who is hard: `top`: the highest scores; `band`: scores above k1, but not the highest (eq. 8)",
    )
    min_score: Fraction = Field(
        defaults.MIN_SCORE, description="detections below this score are dropped, 0 to 1"
    )
    flip_test: bool = Field(
        False, description="average with the mirrored crop: twice the cost of the pose nets"
    )
    calibration: str = Field("calibration.json", description="a file of CALIBRATION_DIR, by its plain name")


@dataclass(frozen=True, slots=True)
class LiveConfig:
    """The changeable settings in force, replaced as a whole."""

    p: float
    theta: float
    mode: Mode
    policy: Policy
    min_score: float
    flip_test: bool
    calibration: str


class ConfigStore:
    """Holds the live configuration and drives the split policy. On the event loop only."""

    def __init__(self, settings: Settings, manifest: Manifest) -> None:
        self._manifest = manifest
        self._own_calibration = manifest.calibration_path
        self._calibration_dir = settings.calibration_dir
        self._state_file = settings.state_file
        self.warnings: list[str] = []
        self.source: Literal["environment", "state", "patch"] = "environment"
        name = settings.calibration or self._own_calibration.name
        try:
            calibration = self._read_calibration(name)
        except ApiError as error:
            raise ConfigError(f"CALIBRATION: {error.detail.removeprefix('calibration: ')}") from error
        self.live = LiveConfig(
            p=settings.p,
            theta=calibration.theta if settings.theta is None else settings.theta,
            mode=settings.mode,
            policy=settings.policy,
            min_score=settings.min_score,
            flip_test=settings.flip_test,
            calibration=name,
        )
        version = 1
        if self._state_file is not None:
            calibration, version = self._restore(self._state_file, calibration)
        self._calibration = calibration
        for warning in self._calibration_warnings():
            log.warning(warning)
        self.policy = SplitPolicy(
            calibration.scores,
            p=self.live.p,
            theta=self.live.theta,
            mode=self.live.mode,
            policy=self.live.policy,
            version=version,
        )

    @property
    def etag(self) -> str:
        return f'"{self.policy.snapshot.version}"'

    def patch(self, body: bytes, if_match: str | None) -> bool:
        """Apply a merge patch. Returns whether it changes anything. Raises ApiError (400, 412, 422), and then it has
        not."""
        tags = [tag.strip() for tag in ("*" if if_match is None else if_match).split(",")]
        if tags != ["*"] and self.etag not in tags:
            raise ApiError(412, "precondition_failed", f"the configuration is at version {self.etag} now")
        changes = parse_patch(body)
        theirs: Calibration | None = None
        if "calibration" in changes:
            theirs = self._read_calibration(changes["calibration"])
            changes = {"theta": theirs.theta} | changes
        live = replace(self.live, **changes)
        if theirs == self._calibration:
            theirs = None
        # Who sends again what is in force takes nothing from what has been learned.
        changed = live != self.live or theirs is not None
        if changed:
            self.policy.configure(
                p=live.p,
                theta=live.theta,
                mode=live.mode,
                policy=live.policy,
                calibration=theirs.scores if theirs else None,
            )
            log.info("configuration changed to version %s: %s", self.policy.snapshot.version, changes)
            self.source = "patch" if self._state_file is None else "state"
        self.live = live
        if theirs:
            self._calibration = theirs
        self._save()
        return changed

    def report(self) -> dict[str, Any]:
        """The answer of GET /config. Infinite thresholds are null."""
        now = self.policy.snapshot
        people, share = self.policy.realised()
        return {
            **asdict(self.live),
            "thresholds": {
                "k1": finite(now.k1),
                "k2": finite(now.k2),
                "k1_lowered": now.k1_lowered,
                "reachable": round(now.reachable, 6),
                "samples": now.samples,
                "revision": now.revision,
            },
            "realised": {"people": people, "large_share": round(share, 6)},
            "version": now.version,
            "source": self.source,
            "warnings": [*self.warnings, *self._calibration_warnings()],
        }

    def _calibration_warnings(self) -> list[str]:
        warnings = []
        own = self._own_calibration
        namesake = (self._calibration_dir or own.parent) / own.name
        if self.live.calibration == own.name and _is_another(namesake, own):
            warnings.append(
                f"{own.name} names the pair's own calibration; the file of that name in CALIBRATION_DIR is not used: "
                "give it another name"
            )
        made_with = self._calibration.made_with
        if made_with.min_score != self.live.min_score:
            warnings.append(
                f"the calibration was made with min_score {made_with.min_score}, the service runs with "
                f"{self.live.min_score}: the share may be off in mode `fixed`"
            )
        if made_with.router_sha256 != self._manifest.router.sha256:
            warnings.append(
                "the calibration was made with another router, whose scores say nothing of this one's: the share "
                "comes right in mode `tracking` alone, after some hundred people; `python -m calibration.thresholds` "
                "makes one that fits"
            )
        elif made_with.detector_sha256 != self._manifest.detector.sha256:
            warnings.append(
                "the calibration was made with another detector: the share may be off in mode `fixed`"
            )
        return warnings

    def _read_calibration(self, name: str) -> Calibration:
        if not PLAIN_NAME.fullmatch(name):
            raise ApiError(422, "invalid_parameter", "calibration: a plain file name ending in .json")
        if name == self._own_calibration.name:
            path = self._own_calibration
        elif self._calibration_dir is None:
            raise ApiError(
                422, "invalid_parameter", "calibration: the service was started without CALIBRATION_DIR"
            )
        else:
            path = self._calibration_dir / name
        try:
            calibration = read_calibration(path)
        except OSError as error:
            detail = f"calibration: {name} cannot be read ({error.strerror})"
            raise ApiError(422, "invalid_parameter", detail) from error
        except ValueError as error:
            raise ApiError(
                422, "invalid_parameter", f"calibration: {name} is not a calibration file"
            ) from error
        made_with = calibration.made_with
        if path == self._own_calibration and "router" in self._manifest.replaced:
            return calibration  # better than none, with a warning
        if (made_with.pair, made_with.router_sha256) != (self._manifest.pair, self._manifest.router.sha256):
            detail = f"calibration: {name} was made with another pair or router, its scores mean nothing here"
            raise ApiError(422, "calibration_mismatch", detail)
        return calibration

    def _restore(self, path: Path, calibration: Calibration) -> tuple[Calibration, int]:
        try:
            state = loads(path.read_bytes())
            version = state.pop("version")
            if type(version) is not int or version < 1:
                raise ValueError("version")
            changes = parse_patch(json.dumps(state).encode())
        except FileNotFoundError:
            if not os.access(path.parent, os.W_OK):
                self._warn("STATE_FILE cannot be written: its folder is not there, or not writable")
            return calibration, 1
        except (OSError, ValueError, KeyError, AttributeError, TypeError, ApiError) as error:
            reason = error.detail if isinstance(error, ApiError) else "it is damaged or cannot be read"
            self._warn(f"STATE_FILE is ignored: {reason}")
            return calibration, 1
        if "calibration" in changes:
            try:
                calibration = self._read_calibration(changes["calibration"])
            except ApiError as error:  # such as another router's, since a new version came with one
                self._warn(f"STATE_FILE's calibration and theta are ignored: {error.detail}")
                changes = {name: changes[name] for name in changes.keys() - {"calibration", "theta"}}
        self.live = replace(self.live, **changes)
        self.source = "state"
        log.info("configuration comes from STATE_FILE and wins over the environment: %s", changes)
        return calibration, version

    def _save(self) -> None:
        if self._state_file is None:
            return
        state = json.dumps({**asdict(self.live), "version": self.policy.snapshot.version}, indent=1)
        temporary = self._state_file.with_name(self._state_file.name + ".new")
        try:
            with temporary.open("w") as file:
                file.write(state)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._state_file)
            self.warnings.clear()
        except OSError as error:
            self._warn(f"STATE_FILE cannot be written ({error.strerror}): a restart will lose this change")

    def _warn(self, warning: str) -> None:
        log.warning(warning)
        self.warnings = [warning]


def parse_patch(body: bytes) -> dict[str, Any]:
    """The members that a merge patch changes, checked. Raises ApiError: 400 for broken JSON, 422 for the rest."""
    try:
        document = loads(body)
    except NotJson as error:
        raise ApiError(400, "bad_request", str(error)) from error
    except RefusedJson as error:
        raise ApiError(422, "invalid_parameter", str(error)) from error
    if not isinstance(document, dict):
        raise ApiError(422, "invalid_parameter", "the patch must be a JSON object")
    if not document:
        raise ApiError(422, "invalid_parameter", "the patch changes nothing")
    try:
        patch = ConfigPatch.model_validate(document)
    except ValidationError as error:
        raise ApiError(422, "invalid_parameter", "; ".join(map(_explain, error.errors()))) from error
    # 0.0 + x turns -0.0 into 0.0.
    return {
        name: 0.0 + value if isinstance(value, float) else value
        for name, value in patch.model_dump(include=patch.model_fields_set).items()
    }


def finite(threshold: float) -> float | None:
    """A threshold as JSON has it: 6 decimals, null for an infinite one."""
    return round(threshold, 6) if abs(threshold) != float("inf") else None


def _explain(error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{name}: unknown or read-only; one can change {', '.join(ConfigPatch.model_fields)}"
    field = ConfigPatch.model_fields.get(name)
    return f"{name}: {error['msg']} ({field.description})" if field else f"{name}: {error['msg']}"


def _is_another(path: Path, own: Path) -> bool:
    """Whether a file other than `own` is there."""
    try:
        return not path.samefile(own)
    except OSError:  # none is, or none that can be reached
        return False
