from pathlib import Path

import pytest

from benchmarks.stages import batches, main


def test_batches_keep_order_and_leave_nothing_out() -> None:
    assert list(batches(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(batches([], 2)) == []


def test_without_pictures_the_stages_are_not_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "absent")]) == 0
    assert "skipped: needs pictures with people in" in capsys.readouterr().out
