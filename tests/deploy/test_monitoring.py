"""Rules and dashboard against what the service really tells, and against promtool where that is installed."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.deploy.conftest import DEPLOY, documents

FOLDER = DEPLOY / "prometheus"
FROM_PROMETHEUS = ("job", "instance")


def rules() -> list[dict]:
    return [rule for group in documents("prometheus", "rules.yml")[0]["groups"] for rule in group["rules"]]


def dashboard() -> dict:
    return json.loads((DEPLOY / "grafana" / "dashboards" / "dynpose.json").read_text())


def queries(source: str) -> list[str]:
    match source:
        case "rules":
            return [rule["expr"] for rule in rules()]
        case "dashboard":
            variables = [variable["query"] for variable in dashboard()["templating"]["list"]]
            targets = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
            return [*targets, *(query["query"] for query in variables if isinstance(query, dict))]
        case _:
            triggers = documents("kubernetes", "scaledobject.yaml")[0]["spec"]["triggers"]
            return [query for trigger in triggers if (query := trigger["metadata"].get("query"))]


def selectors(query: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """(name, its matchers) of each series that `query` asks a service for."""
    for name, matchers in re.findall(r"(?<![\w:])((?:dynpose|process)_\w+)(?:\{([^}]*)\})?", query):
        found = re.findall(r'(\w+)(=~|=)"([^"]*)"', matchers)
        yield name, [matcher for matcher in found if matcher[0] not in FROM_PROMETHEUS]


def fits(labels: dict[str, str], matcher: tuple[str, str, str]) -> bool:
    label, operator, value = matcher
    theirs = labels.get(label, "")
    return theirs == value if operator == "=" else re.fullmatch(value, theirs) is not None


@pytest.mark.parametrize("source", ["rules", "dashboard", "scaling"])
def test_every_series_that_is_asked_for_is_one_of_the_services(client, source: str):
    there: dict[str, list[dict[str, str]]] = {}
    for family in parse(client.get("/metrics").text):
        for sample in family.samples:
            there.setdefault(sample.name, []).append(sample.labels)
    asked = [selector for query in queries(source) for selector in selectors(query)]
    assert asked
    for name, matchers in asked:
        found = [labels for labels in there.get(name, []) if all(fits(labels, it) for it in matchers)]
        assert found, f"{name} {matchers}"


@pytest.mark.parametrize("source", ["rules", "dashboard"])
def test_every_record_that_is_asked_for_is_made(source: str):
    made = {rule["record"] for rule in rules() if "record" in rule}
    asked = {name for query in queries(source) for name in re.findall(r"\b\w+:\w+:\w+", query)}
    assert asked <= made


def test_every_alert_says_what_to_do_and_is_in_the_readme_and_in_the_rules_test():
    alerts = [rule for rule in rules() if "alert" in rule]
    readme = (DEPLOY / "README.md").read_text()
    fired = {
        test["alertname"]
        for case in documents("prometheus", "rules_test.yml")[0]["tests"]
        for test in case["alert_rule_test"]
        if test.get("exp_alerts")
    }
    assert {alert["alert"] for alert in alerts} == fired
    for alert in alerts:
        assert f"`{alert['alert']}`" in readme
        assert len(alert["annotations"]["summary"].split(". ")) > 1  # what is wrong, and what to do


@pytest.mark.parametrize(
    "command", [["check", "config", "prometheus.yml"], ["test", "rules", "rules_test.yml"]]
)
def test_promtool_finds_nothing_wrong(command: list[str]):
    if not shutil.which("promtool"):
        pytest.skip("needs promtool: Debian's package `prometheus`, or its release on PATH")
    result = subprocess.run(["promtool", *command], cwd=FOLDER, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_panels_have_ids_of_their_own_and_do_not_overlap():
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
