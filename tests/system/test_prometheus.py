"""Debian's Prometheus scrapes a real server by our configuration; every expression of the dashboard answers."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from shardfeed import RemoteDataset
from tests.debian import unpacked
from tests.photographs import write_shards
from tests.requirements import require
from tests.server.test_monitoring import expressions
from tests.system.loaders import Loader, wait_until

pytestmark = [pytest.mark.peers, pytest.mark.timeout(240)]

DEPLOY = Path(__file__).parents[2] / "deploy/prometheus"


@pytest.fixture(scope="module")
def programs() -> Path:
    """The folder of Debian's prometheus and promtool."""
    folder = unpacked("prometheus")
    require("peers", folder is not None, "Debian's package prometheus cannot be had")
    assert folder is not None
    return folder / "usr/bin"


def test_promtool_accepts_the_configuration_and_the_rules(programs: Path) -> None:
    done = subprocess.run(
        [programs / "promtool", "check", "config", DEPLOY / "prometheus.yml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 rules found" in done.stdout


def test_the_alerts_fire_when_they_should(programs: Path, tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "rules.yml", tmp_path)
    ratio = 'shardfeed_trainer_waiting_seconds_total{training="t",rank="%s",cause="%s"}'
    series = [
        {"series": ratio % (0, "decoding"), "values": "0+30x60"},  # half of each minute
        {"series": ratio % (1, "queue"), "values": "0+18x60"},
        {"series": ratio % (1, "wire"), "values": "0+30x60"},
        *(
            {"series": f'shardfeed_trainer_steps_total{{training="t",rank="{rank}"}}', "values": "0+60x60"}
            for rank in (0, 1)
        ),
        {"series": 'shardfeed_worker_deaths_total{instance="a:9880"}', "values": "0+1x60"},
        {"series": 'shardfeed_masked_rows_total{stream="train"}', "values": "0+2x60"},
        {"series": 'shardfeed_samples_total{stream="train"}', "values": "0+98x60"},
        {"series": 'up{job="shardfeed",instance="a:9880"}', "values": "0x60"},
    ]
    fired = [
        ("ShardfeedTrainersWait", {"severity": "info"}),
        ("ShardfeedNoServer", {"severity": "critical"}),
        ("ShardfeedServerDown", {"severity": "warning", "job": "shardfeed", "instance": "a:9880"}),
        ("ShardfeedWorkersDie", {"severity": "warning", "instance": "a:9880"}),
        ("ShardfeedBadSamples", {"severity": "warning", "stream": "train"}),
        ("ShardfeedShardsUnreadable", None),
        ("ShardfeedNotReady", None),
    ]
    written = yaml.safe_load((tmp_path / "rules.yml").read_text())
    annotations = {rule.get("alert"): rule.get("annotations") for rule in written["groups"][0]["rules"]}
    values = {"ShardfeedTrainersWait": "40%", "ShardfeedBadSamples": "2%"}

    def expected(name: str, labels: dict[str, str]) -> dict[str, Any]:
        said = {}
        for key, text in annotations[name].items():
            for label, value in labels.items():
                text = text.replace(f"{{{{ $labels.{label} }}}}", value)
            said[key] = text.replace("{{ $value | humanizePercentage }}", values.get(name, ""))
        return {"exp_labels": labels, "exp_annotations": said}

    alerts = [
        {
            "eval_time": "50m",
            "alertname": name,
            "exp_alerts": [] if labels is None else [expected(name, labels)],
        }
        for name, labels in fired
    ]
    tests = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": alerts}],
    }
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests))
    done = subprocess.run(
        [programs / "promtool", "test", "rules", "tests.yml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def scraped(programs: Path, tmp_path: Path) -> Iterator[tuple[str, Loader]]:
    """A server, and a Prometheus with our configuration that scrapes it every second."""
    samples = [(f"{n:03d}", {"txt": b"some text", "cls": b"%d" % n}) for n in range(64)]
    shards = write_shards(tmp_path / "shards", samples, 1)
    with socket.create_server(("127.0.0.1", 0)) as free, socket.create_server(("127.0.0.1", 0)) as another:
        http, port = (f"127.0.0.1:{each.getsockname()[1]}" for each in (free, another))
    configuration = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    (scrape,) = configuration["scrape_configs"]
    assert scrape.pop("dns_sd_configs")[0]["port"] == 9880
    scrape["static_configs"] = [{"targets": [http]}]
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    shutil.copy(DEPLOY / "rules.yml", tmp_path)
    options = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    command = [programs / "prometheus", *options, f"--web.listen-address={port}", "--log.level=warn"]
    with (
        Loader.of(shards, "--fields", "txt cls", "--workers", "1", "--http", http) as loader,
        subprocess.Popen(command, stdin=subprocess.DEVNULL) as process,
    ):
        try:
            yield f"http://{port}", loader
        finally:
            process.terminate()


def query(prometheus: str, expression: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expression})}") as answer:
        found = json.load(answer)
    assert found["status"] == "success", found
    return list(found["data"]["result"])


def value(prometheus: str, expression: str) -> float:
    """The sum of an expression's values; -1 while Prometheus is not up."""
    try:
        return sum(float(each["value"][1]) for each in query(prometheus, expression))
    except OSError:
        return -1.0


def firing(prometheus: str) -> dict[str, str]:
    """The summaries of the alerts that fire now, by name."""
    with urllib.request.urlopen(f"{prometheus}/api/v1/alerts") as answer:
        alerts = json.load(answer)["data"]["alerts"]
    return {
        alert["labels"]["alertname"]: alert["annotations"]["summary"] for alert in alerts if alert["state"] == "firing"
    }


def test_an_alert_fires_for_a_server_whose_workers_die_again_and_again(scraped: tuple[str, Loader]) -> None:
    prometheus, loader = scraped
    deaths = 'shardfeed_worker_deaths_total{job="shardfeed"}'
    wait_until(lambda: value(prometheus, f"count({deaths})") == 1, 60, what="the first scrape")
    assert firing(prometheus) == {}
    for count in range(1, 6):
        wait_until(loader.workers, what="a worker")
        loader.workers()[0].kill()
        wait_until(lambda: value(prometheus, deaths) == count, 60, what=f"death {count} in Prometheus")  # noqa: B023 - called at once
    wait_until(lambda: firing(prometheus), 60, what="an alert")
    (port,) = re.findall(r"^health and figures: http://(\S+?)/", loader.output, re.MULTILINE)
    assert firing(prometheus) == {"ShardfeedWorkersDie": f"Workers of {port} die"}


def test_prometheus_scrapes_a_server_and_the_dashboards_expressions_answer(scraped: tuple[str, Loader]) -> None:
    prometheus, loader = scraped

    wait_until(lambda: value(prometheus, 'up{job="shardfeed"}') == 1, 60, what="the first scrape")
    with RemoteDataset(loader.url, batch_size=4, job="scraped") as dataset:
        passes = 0

        def trained() -> bool:
            nonlocal passes
            for _ in dataset:
                pass
            passes += 1
            counted = value(prometheus, 'shardfeed_samples_total{training="scraped",stream="default"}')
            return value(prometheus, "shardfeed_trainers_waiting_ratio") > 0 and 64 <= counted <= 64 * passes

        wait_until(trained, 60, what="the figures' arrival at Prometheus")
        silent = {"reason", "shardfeed_cache"}  # nothing failed, and no shard is far
        for title, expression in expressions():
            if expression.startswith("label_values") or " > " in expression or "==" in expression:
                continue
            for variable, text in (("$stream", ".*"), ("$training", ".*"), ("$__rate_interval", "10s")):
                expression = expression.replace(variable, text)
            expression = expression.replace("[1h]", "[10s]")
            found = query(prometheus, expression)
            assert found or any(word in expression for word in silent), f"{title}: {expression} gives nothing"
