"""The commands of docs/deploy/ray.md, as they stand there, on nodes that `ray start` made."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.deploy.pages import Page
from tests.interop.environments import PIP, ROOT, fresh, run
from tests.photographs import Photographs
from tests.ray.network import PATIENCE, own_network, short_sessions
from tests.requirements import require
from tests.system.loaders import write_photographs

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def page() -> Page:
    return Page("ray.md")


@pytest.fixture(scope="module")
def node(page: Page, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that the page's `pip install` filled: with this checkout, the rest is there."""
    require("ray", importlib.util.find_spec("ray"), "Ray is not installed")
    folder = tmp_path_factory.mktemp("node")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "wheels", ROOT)
    python = fresh(folder / "environment", without={"shardfeed"})
    command, *words = shlex.split(page.command("pip install"))
    assert command == "pip"
    options = ["--no-index", "--find-links", folder / "wheels"]
    run(*PIP, "--python", python, *words, *options)
    return python.parent


def test_the_commands_of_the_page_start_look_at_scale_and_end_servers(
    page: Page, node: Path, photographs: Photographs, tmp_path: Path
) -> None:
    write_photographs(tmp_path, photographs[:64], count=2)
    (tmp_path / "shardfeed.toml").write_text(
        '[streams.train]\nshards = "train-{000000..000001}.tar"\n'
        'fields = "jpg;png cls"\ntransforms = ["resize=32x32"]\n'
    )
    said: dict[str, str] = {}
    with own_network() as inside, short_sessions():
        path = os.pathsep.join([str(node), str(Path(sys.executable).parent), os.environ["PATH"]])

        def run_line(line: str) -> str:
            done = subprocess.run(
                [*inside, *shlex.split(line.replace("HEAD", "127.0.0.1"))],
                capture_output=True,
                text=True,
                check=False,
                timeout=PATIENCE,
                cwd=tmp_path,
                env={**os.environ, "PATH": path},
            )
            assert done.returncode == 0, f"{line!r} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            return done.stdout

        try:
            for line in page.commands:
                if line.startswith("pip "):
                    continue
                words = shlex.split(page.command(line))
                nodes = 2 if "--address" in words else 1  # two data nodes
                for _ in range(nodes):
                    said[" ".join(words[:3])] = run_line(line)
                if words[:2] == ["ray", "start"] and nodes == 2:
                    wait_for_nodes(run_line, 3)
        finally:
            run_line("ray stop --force")
    assert "2 servers; trainers read ray://train" in said["shardfeed ray up"]
    assert said["shardfeed ray status"].count("streams train, 64 samples") == 2
    assert "2 servers, it had 2" in said["shardfeed ray scale"]
    assert "2 servers ended" in said["shardfeed ray down"]
    page.check()


def wait_for_nodes(run: object, count: int) -> None:
    assert callable(run)
    deadline = time.monotonic() + PATIENCE
    while len(re.findall(r"^ *\d+ node_", run("ray status"), re.MULTILINE)) < count:
        assert time.monotonic() < deadline, f"the cluster has no {count} nodes"
