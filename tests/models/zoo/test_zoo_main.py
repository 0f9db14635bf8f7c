import pytest

from models.zoo.__main__ import main
from models.zoo.networks import NETWORKS


def test_one_table_of_all_networks(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    table = {line[0]: line[1:] for line in lines if line}
    assert set(NETWORKS) < set(table)
    assert table["resnet50"] == ["33,999,697", "5.426", "5.450", "5.45", "71.8"]
    assert table["resnet101"] == ["52,991,825", "9.063", "9.097", "9.01", "[1]", "72.8"]
    assert table["vitpose-l"] == ["308,543,761", "61.569", "59.807", "58.68", "[2]", "78.2"]
    assert table["vitpose-h"] == ["637,207,569", "125.830", "122.892", "-", "78.8"]
    assert table["router"][:2] == ["853,219", "0.122"]
    assert {"[1]", "[2]", "[3]"} < set(table)


def test_the_table_has_a_name(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("models.zoo.__main__.table", lambda: "the table")
    assert main(["list"]) == 0
    assert capsys.readouterr().out.startswith("the table\n")


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        main(["train"])
    assert "invalid choice" in capsys.readouterr().err
