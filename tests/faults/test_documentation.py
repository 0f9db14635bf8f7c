"""docs/reliability.md claims nothing that no test shows."""

import re

from tests.process import ROOT


def test_every_test_that_the_page_names_exists():
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", (ROOT / "docs" / "reliability.md").read_text()))
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 30
    assert named - set(re.findall(r"def (test_[a-z0-9_]+)\(", sources)) == set()
