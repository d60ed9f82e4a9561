"""`shardfeed serve --reload`: a change of the configuration or the code is served soon, a broken one waited out."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.cli.command import Running, started
from tests.photographs import write_shards

pytestmark = pytest.mark.xdist_group("cli-reload")

CONFIGURATION = """\
bind = ["ipc://{folder}/run/feed"]
workers = 1
code_dir = "code"

[streams.first]
shards = "train-000000.tar"
fields = "txt"
transform = "mine:changed"
"""

CODE = "def changed(sample):\n    return {**sample, 'txt': 'as it is'}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_shards(tmp_path, [("a", {"txt": b"text"})], 1)
    (tmp_path / "code").mkdir()
    (tmp_path / "run").mkdir()  # the socket's alone, and not the server's to remove
    (tmp_path / "code/mine.py").write_text(CODE)
    file = tmp_path / "shardfeed.toml"
    file.write_text(CONFIGURATION.format(folder=tmp_path))
    return file


def children(running: Running) -> list[psutil.Process]:
    return psutil.Process(running.process.pid).children()


@pytest.mark.timeout(180)
def test_changes_are_served_and_broken_ones_waited_out(file: Path, tmp_path: Path) -> None:
    good = file.read_text()
    file.write_text("workers = 'many'")
    with started("serve", "--config", file, "--reload", log=tmp_path / "log") as running:
        running.wait_for("^reload: .*workers.*; waiting for a change")
        assert children(running) == []

        file.write_text(good)
        running.wait_for("^stream first: ")
        (server,) = children(running)

        file.write_text("workers = 'too many'")
        running.wait_for("^reload: .*workers.*; the server stays as it is")
        assert children(running) == [server]

        (tmp_path / "code/mine.py").write_text("this is not Python\n")
        file.write_text(good)
        running.wait_for("^reload: the server ended with status 1; waiting for a change")
        running.wait_for("^error: .*mine")
        assert not server.is_running()

        (tmp_path / "code/mine.py").write_text(CODE)
        running.wait_for("^reload: .*mine.py changed: restarting")
        running.wait_for("^stream first: ", count=2)
        assert running.stop() == 0
    assert "draining" in running.said()
    assert "Traceback" not in running.said()


def test_the_server_does_not_outlive_a_supervisor_that_is_killed(file: Path, tmp_path: Path) -> None:
    with started("serve", "--config", file, "--reload", log=tmp_path / "log") as running:
        running.wait_until((tmp_path / "run/feed").exists)
        (server,) = children(running)
        running.process.kill()
        running.process.wait()
        server.wait(30)
