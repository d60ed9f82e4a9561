"""Ray places the servers, restarts them elsewhere, and a trainer reads ``ray://NAME`` as if nothing had happened."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shardfeed import RemoteDataset
from tests.cli.command import COMMAND
from tests.photographs import Photographs
from tests.ray.network import PATIENCE, Program, own_network, short_sessions
from tests.requirements import require
from tests.system.loaders import wait_until, write_photographs

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300), pytest.mark.xdist_group("ray")]

SAMPLES = 1600


class Ray:
    """A cluster, the configuration of its deployments, and the command."""

    def __init__(self, inside: list[str], cluster: Program, address: str, config: Path, folder: Path) -> None:
        self.inside, self.cluster, self.config, self.folder = inside, cluster, config, folder
        self.environment = {"RAY_ADDRESS": address}
        self._nodes = -1

    def add_node(self, units: int) -> int:
        self._nodes += 1
        self.cluster.tell(f"add {units}")
        self.cluster.wait_for(rf"^node {self._nodes}$")
        return self._nodes

    def remove_node(self, number: int) -> None:
        self.cluster.tell(f"remove {number}")
        self.cluster.wait_for(rf"^removed {number}$")

    def command(self, *arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            [*self.inside, *COMMAND, "ray", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
            env={**os.environ, **self.environment},
        )
        assert done.returncode == status, f"{arguments} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout if status == 0 else done.stderr

    def servers(self, name: str) -> dict[str, Any]:
        """The servers that are ready, by number."""
        states = json.loads(self.command("status", "--name", name, "--json"))["servers"]
        return {number: state for number, state in states.items() if isinstance(state, dict)}

    @contextmanager
    def deployment(self, name: str, *options: str) -> Iterator[str]:
        try:
            yield self.command("up", "--config", str(self.config), "--name", name, *options)
        finally:
            self.command("down", "--name", name)

    def trainer(self, name: str, *waits: int) -> Program:
        log = self.folder / f"trainer-{name}"
        steps = [str(step) for step in waits]
        return Program(self.inside, "tests.ray.trainer", f"ray://{name}", *steps, environment=self.environment, log=log)


@pytest.fixture(scope="module")
def config(photographs: Photographs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray")
    write_photographs(folder / "data", photographs[:SAMPLES], count=8)
    file = folder / "shardfeed.toml"
    file.write_text(
        '[streams.train]\nshards = "data/train-{000000..000007}.tar"\nfields = "jpg;png cls"\n'
        'transforms = ["random_resized_crop=32", "flip"]\n'
    )
    return file


@pytest.fixture(scope="module")
def undisturbed(config: Path) -> str:
    """The digest of an epoch from one server without Ray."""
    with RemoteDataset(f"local:{config}", stream="train", batch_size=16) as train:
        for _ in train:
            pass
        return train.digest


@pytest.fixture
def cluster(config: Path, tmp_path: Path) -> Iterator[Ray]:
    require("ray", importlib.util.find_spec("ray"), "Ray is not installed")
    with (
        own_network() as inside,
        short_sessions(),
        Program(inside, "tests.ray.cluster", log=tmp_path / "cluster") as program,
    ):
        address = program.wait_for(r"^address (\S+)$")[1]
        yield Ray(inside, program, address, config, tmp_path)


def samples_served(ray: Ray, server: dict[str, Any]) -> float:
    read = f"import urllib.request; print(urllib.request.urlopen({server['http'] + '/metrics'!r}).read().decode())"
    text = subprocess.run(
        [*ray.inside, sys.executable, "-c", read], capture_output=True, text=True, check=True, timeout=20
    ).stdout
    return sum(float(value) for value in re.findall(r"^shardfeed_samples_total\{.*\} (\S+)$", text, re.MULTILINE))


def test_a_node_that_goes_in_mid_epoch_and_servers_that_come_change_nothing_that_is_delivered(
    cluster: Ray, undisturbed: str
) -> None:
    first, second = cluster.add_node(1), cluster.add_node(1)
    with cluster.deployment("train", "--resource", "data") as said:
        assert "2 servers" in said
        assert "ray://train" in said
        before = cluster.servers("train")
        assert len({server["node"] for server in before.values()}) == 2

        with cluster.trainer("train", 10, 40, 70) as trainer:
            trainer.wait_for(r"^step 10$")
            cluster.remove_node(second)
            trainer.tell("go on")
            trainer.wait_for(r"^step 40$")

            # Ray has a place for the server that died as soon as there is a node again.
            cluster.add_node(3)
            wait_until(lambda: len(cluster.servers("train")) == 2, PATIENCE, "the server that died is restarted")
            assert "it had 2" in cluster.command("scale", "train", "4")
            joined = {number: server for number, server in cluster.servers("train").items() if number not in before}
            assert len(joined) == 2
            for server in joined.values():
                trainer.wait_for(rf"a server joins: {re.escape(server['endpoints'][0])}")
            trainer.tell("go on")
            trainer.wait_for(r"^step 70$")
            wait_until(
                lambda: all(samples_served(cluster, server) > 0 for server in joined.values()),
                PATIENCE,
                "new servers are asked",
            )
            cluster.command("scale", "train", "1")
            trainer.tell("go on")
            assert trainer.wait_for(r"^digest (\S+) of (\d+)$").groups() == (undisturbed, str(SAMPLES))
            assert trainer.end() == 0
        assert len(cluster.servers("train")) == 1
    assert "no deployment" in cluster.command("status", "--name", "train", status=1)
    assert first == 0


def test_a_server_that_is_killed_is_restarted(cluster: Ray, undisturbed: str) -> None:
    cluster.add_node(0)
    with cluster.deployment("one", "--servers", "1", "--cpus", "2"):
        (server,) = cluster.servers("one").values()
        assert server["workers"] == 2
        assert "exists" in cluster.command("up", "--config", str(cluster.config), "--name", "one", status=1)
        with cluster.trainer("one", 10) as trainer:
            trainer.wait_for(r"^step 10$")
            os.kill(server["pid"], signal.SIGKILL)
            wait_until(
                lambda: [each["pid"] for each in cluster.servers("one").values()] not in ([], [server["pid"]]),
                PATIENCE,
                "the server is restarted",
            )
            trainer.tell("go on")
            assert trainer.wait_for(r"^digest (\S+) of (\d+)$").groups() == (undisturbed, str(SAMPLES))


WITHOUT_CLUSTER = """
import os, ray
from shardfeed.ray_cluster import RayEndpoints
from shardfeed_wire.errors import ConfigError, NobodyAnswersError

def error_of(endpoints):
    try:
        endpoints()
    except (ConfigError, NobodyAnswersError) as error:
        return type(error).__name__

endpoints = RayEndpoints("ray://one")
print(len(endpoints()))
ray.shutdown()
address = os.environ["RAY_ADDRESS"]
os.environ["RAY_ADDRESS"] = "nowhere"  # to which Ray says no at once; a head that is down it tries for minutes
print(error_of(endpoints), error_of(RayEndpoints("ray://one")))
os.environ["RAY_ADDRESS"] = address
print(len(endpoints()))
"""


def test_a_cluster_that_was_found_and_cannot_be_connected_to_again_is_no_wrong_configuration(cluster: Ray) -> None:
    cluster.add_node(0)
    with cluster.deployment("one", "--servers", "1"):
        done = subprocess.run(
            [*cluster.inside, sys.executable, "-c", WITHOUT_CLUSTER],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
            env={**os.environ, **cluster.environment},
        )
        assert done.stdout.split() == ["1", "NobodyAnswersError", "ConfigError", "1"], done.stdout + done.stderr


def test_what_cannot_be_placed_or_cannot_come_up_is_said(cluster: Ray, tmp_path: Path) -> None:
    cluster.add_node(0)
    with cluster.trainer("nothing") as trainer:
        assert trainer.process.wait(PATIENCE) == 1
        assert "Ray knows no such deployment; look with `shardfeed ray status`" in trainer.said()
    assert "no node has resource 'gpu'" in cluster.command(
        "up", "--config", str(cluster.config), "--resource", "gpu", status=1
    )
    broken = tmp_path / "broken.toml"
    broken.write_text('[streams.train]\nshards = "nowhere.tar"\nfields = "jpg cls"\n')
    try:
        said = cluster.command("up", "--config", str(broken), "--name", "broken", "--servers", "1", status=1)
        assert "nowhere.tar" in said
    finally:
        cluster.command("down", "--name", "broken")
