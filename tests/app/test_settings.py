"""Settings come from the environment or a `.env` file, and a bad one is said in one line."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import Settings, SettingsError, env_example, load_settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable and no .env of whoever runs the tests."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def test_every_setting_has_a_default_and_a_description() -> None:
    assert load_settings() == Settings()
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_the_env_example_names_every_setting_with_its_default() -> None:
    assert (ROOT / ".env.example").read_text() == env_example()


def test_the_env_example_with_nothing_commented_out_gives_the_defaults(tmp_path: Path) -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    set_all = [
        line.removeprefix("# ") for line in lines if line[2:].split("=")[0].lower() in Settings.model_fields
    ]
    assert len(set_all) == len(Settings.model_fields)
    (tmp_path / ".env").write_text("\n".join(set_all))
    assert load_settings() == Settings(_env_file=None)


def test_a_variable_of_the_environment_wins_over_the_env_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("P=0.25\nTHETA=0.2\n")
    monkeypatch.setenv("P", "0.75")
    settings = load_settings()
    assert (settings.p, settings.theta) == (0.75, 0.2)


def test_a_setting_never_changes() -> None:
    with pytest.raises(ValidationError):
        load_settings().p = 0.1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("P", "nan"),
        ("P", "1.5"),
        ("P", "half"),
        ("THETA", "-0.1"),
        ("MIN_SCORE", "inf"),
        ("MODE", "sometimes"),
        ("POLICY", "none"),
        ("DEVICE", "tpu"),
        ("PRECISION", "fp8"),
        ("PORT", "70000"),
        ("FLIP_TEST", "perhaps"),
        ("MAX_PEOPLE", "0"),
        ("MAX_PEOPLE", "300"),
        ("MAX_BODY_BYTES", "-1"),
        ("MAX_IMAGE_PIXELS", "1e3"),
        ("BODY_TIMEOUT_S", "0"),
        ("BODY_TIMEOUT_S", "inf"),
        ("STALL_S", "0"),
        ("DEADLINE_MS", "0"),
        ("SHUTDOWN_GRACE_S", "-5"),
        ("SHUTDOWN_GRACE_S", "1.5"),
        ("ADMIN_TOKEN", "of a file\n"),
        ("ADMIN_TOKEN", " "),
        ("POSE_TOKEN", "sch\u00f6n"),
        ("WEB_CONCURRENCY", "4"),
    ],
)
def test_a_bad_value_is_one_line_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert str(refused.value).startswith(name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["small", "large", "detector", "router"])
def test_a_part_of_the_pair_is_replaced_by_a_setting(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert getattr(load_settings(), name) is None
    monkeypatch.setenv(name.upper(), "resnet50=/weights/r50.pth")
    assert getattr(load_settings(), name) == "resnet50=/weights/r50.pth"


def test_tokens_do_not_show_in_a_printed_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADMIN_TOKEN", "quite-secret")
    monkeypatch.setenv("POSE_TOKEN", "also-secret")
    assert "secret" not in f"{load_settings()!r} {load_settings()}".replace("SecretStr", "")


def test_a_file_of_settings_that_cannot_be_read_is_named(monkeypatch):
    def refuse():
        raise PermissionError(13, "Permission denied", ".env")

    monkeypatch.setattr("app.settings.Settings", refuse)
    with pytest.raises(SettingsError, match=r"^\.env cannot be read: Permission denied$"):
        load_settings()
