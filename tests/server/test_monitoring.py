"""What deploy/ asks Prometheus for, and what the page tells of, is what a server really exposes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from shardfeed_server.exposition import expose
from shardfeed_server.figures import Figures, Standing, Work
from shardfeed_wire.messages import Waited

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/howto/where-time-goes.md"
DASHBOARD = ROOT / "deploy/grafana/dashboards/shardfeed.json"
RULES = ROOT / "deploy/prometheus/rules.yml"

PROMETHEUS = {"up", "instance", "job", "le"}
"""A metric and labels that Prometheus itself makes."""


def exposed() -> dict[str, set[str]]:
    """The labels of every sample that a server exposes, by the sample's name."""
    figures = Figures()
    figures.answered("train", "job", rows=1, size=1, work=Work(), sending=0.0, now=0.0)
    figures.waited("job", 0, Waited(steps=1), 0.0)
    figures.request_failed("failed")
    standing = Standing(name="s", software="v", ready=True, workers=1, queued=0, unsent=0, kept=0, clients=("job",))
    families = text_string_to_metric_families(expose(standing, figures).decode())
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return list(group["rules"])


def expressions() -> list[tuple[str, str]]:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel["targets"]]
    variables = [(variable["name"], variable["query"]["query"]) for variable in dashboard["templating"]["list"]]
    return [*panels, *variables, *((rule.get("alert", rule.get("record")), rule["expr"]) for rule in rules())]


@pytest.mark.parametrize(("title", "expression"), expressions())
def test_an_expression_names_what_a_server_exposes(title: str, expression: str) -> None:
    known = exposed()
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    metrics = set(re.findall(r"\b(?:shardfeed_|process_)\w+|\bup\b", expression))
    assert metrics, f"{title}: {expression}"
    assert metrics <= known.keys() | recorded | PROMETHEUS
    labels = {label for metric in metrics for label in known.get(metric, set())} | PROMETHEUS
    named = set(re.findall(r"(\w+)\s*[=!]~?\"", expression))
    for several in re.findall(r"\bby \(([^)]*)\)", expression):
        named |= set(re.findall(r"\w+", several))
    assert named <= labels, f"{title}: {expression}"


def test_grafana_finds_its_dashboard_and_prometheus_where_compose_has_them() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    mounted = dict(volume.split(":")[1::-1] for volume in services["grafana"]["volumes"])
    provisioning = ROOT / mounted["/etc/grafana/provisioning"]  # where the image looks
    (provider,) = yaml.safe_load((provisioning / "dashboards/shardfeed.yml").read_text())["providers"]
    assert (ROOT / mounted[provider["options"]["path"]]) == DASHBOARD.parent

    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    _, _, port = services["prometheus"]["ports"][0].rpartition(":")
    assert source["url"] == f"http://prometheus:{port}"
    dashboard = json.loads(DASHBOARD.read_text())
    of_source = {"type": source["type"], "uid": source["uid"]}
    for each in (*dashboard["panels"], *dashboard["templating"]["list"]):
        assert each["datasource"] == of_source, each
    assert all(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])


def test_the_page_lists_every_metric_and_no_other() -> None:
    told = set()
    for line in PAGE.read_text().splitlines():
        if line.startswith("| `shardfeed_"):
            told |= set(re.findall(r"`(shardfeed_\w+)`", line.split("|")[1]))
    found = {re.sub(r"_(bucket|count|sum)$", "", name) for name in exposed() if name.startswith("shardfeed_")}
    assert told == found
