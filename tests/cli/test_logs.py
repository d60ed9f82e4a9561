"""Logs: one line an event with its facts, for a person or as JSON, and never a line a batch."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shardfeed import RemoteDataset
from shardfeed_server.events import logger
from tests.cli.command import COMMAND, run
from tests.photographs import write_shards
from tests.system.loaders import wait_until
from webdataset.images import decodes_parts

SAMPLES = 200

HOSTILE = """
from shardfeed_cli.logs import show_logs
from shardfeed_server.events import logger
import logging, sys

show_logs(as_json="json" in sys.argv)
log = logger("shardfeed.server")
log.info("one\\nline", fact="two\\nlines \\x1b[31m", other="\\x1b[31m", number=3)
logging.getLogger("other").warning("from %s", "elsewhere")
log.debug("too small to be shown")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("a defect")
"""


def said(*arguments: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", HOSTILE, *arguments], capture_output=True, text=True, timeout=45)
    assert (done.returncode, done.stdout) == (0, "")
    return done.stderr.splitlines()


def test_json_has_a_line_an_event_and_every_fact() -> None:
    ours, foreign, defect = map(json.loads, said("json"))
    assert (ours["event"], ours["fact"], ours["number"]) == ("one\nline", "two\nlines \x1b[31m", 3)
    assert (ours["level"], ours["logger"]) == ("info", "shardfeed.server")
    assert re.match(r"\d{4}-\d\d-\d\dT.*Z$", ours["timestamp"])
    assert (foreign["event"], foreign["level"], foreign["logger"]) == ("from elsewhere", "warning", "other")
    assert defect["exception"].endswith("ZeroDivisionError: division by zero")


def test_for_a_person_an_event_is_one_line_too_without_control_characters() -> None:
    lines = said()
    assert re.match(r"\d{4}-\S+Z \[info\] +one\\nline ", lines[0])
    assert r"two\nlines \x1b[31m" in lines[0]
    assert "number=3" in lines[0]
    assert "from elsewhere" in lines[1]
    assert lines.count("ZeroDivisionError: division by zero") == 1
    assert "\x1b" not in "".join(lines)


def test_a_program_that_embeds_a_server_gets_plain_records(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "shardfeed.server"):
        logger("shardfeed.server").info("an event", fact=3)
    (record,) = caplog.records
    assert (record.getMessage(), record.name, record.__dict__["fact"]) == ("an event", "shardfeed.server", 3)


@pytest.mark.timeout(120)
def test_a_server_with_log_json_says_everything_as_events_and_none_a_batch(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [(f"{n:03d}", {"cls": b"%d" % n}) for n in range(SAMPLES)], 1)
    where = ["--bind", f"ipc://{tmp_path}/feed", "--http", "off", "--workers", "1"]
    log = tmp_path / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*COMMAND, "serve", str(shards[0]), "--fields", "cls", "--log-json", *where],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stream,
        )
    try:
        wait_until(lambda: '"serving"' in log.read_text(), 40, what="the server's start")
        with RemoteDataset(f"ipc://{tmp_path}/feed", batch_size=2) as dataset:
            assert len(list(dataset)) == SAMPLES // 2
        process.terminate()
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
        printed, _ = process.communicate()
    assert printed == b""
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["event"] for event in events] == ["serving", "draining"]
    assert events[0]["streams"] == {"default": {"samples": SAMPLES, "shards": 1}}
    assert events[0]["endpoints"] == [f"ipc://{tmp_path}/feed"]
    assert events[0]["jpegcrop"] is decodes_parts()


@pytest.mark.timeout(120)
def test_an_output_of_a_server_with_log_json_says_everything_as_events_too(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [(f"{n:03d}", {"cls": b"%d" % n}) for n in range(SAMPLES)], 1)
    where = ["--bind", f"ipc://{tmp_path}/feed", "--http", "off", "--workers", "1"]
    log = tmp_path / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [
                *COMMAND,
                "serve",
                str(shards[0]),
                "--fields",
                "cls",
                "--log-json",
                "--push",
                "zpub://127.0.0.1:0",
                *where,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stream,
        )
    try:
        wait_until(lambda: "batches sent" in log.read_text(), 80, what="the output's first epoch")
        process.terminate()
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
        printed, _ = process.communicate()
    assert printed == b""
    events = [json.loads(line) for line in log.read_text().splitlines()]
    said = [event["event"] for event in events if event["logger"] == "shardfeed.push"]
    assert said[0].startswith("pushing default to zpub://127.0.0.1:")
    assert said[1].startswith("epoch 0: ")


def test_what_ends_a_push_with_log_json_is_an_event_too() -> None:
    done = run("push", "tcp://127.0.0.1:1", "zpub://127.0.0.1:0", "--timeout", "0.5", "--log-json")
    assert (done.returncode, done.stdout) == (1, "")
    event = json.loads(done.stderr)
    assert (event["level"], event["logger"]) == ("error", "shardfeed.push")
    assert "tcp://127.0.0.1:1" in event["event"]


def test_the_error_that_ends_a_server_is_an_event_too(tmp_path: Path) -> None:
    done = run("serve", tmp_path / "absent.tar", "--fields", "cls", "--log-json", "--http", "off")
    assert done.returncode == 1
    event = json.loads(done.stderr)
    assert event["level"] == "error"
    assert "absent.tar" in event["event"]
