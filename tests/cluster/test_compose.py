"""The local cluster for real: an engine, images made from this checkout, and every command of its page."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.pages import FOLDER, Page

pytestmark = [pytest.mark.container, pytest.mark.timeout(600)]

SAMPLES = 1437  # of the digits, those to train with
EPOCHS = 100_000  # more than there is time for: the trainer is told to stop when servers have died and joined
PATIENCE = 120.0
UP_SECONDS = 240.0


class Cluster:
    """A copy of the checkout in which commands run as a user types them, and what they printed."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = {
            **environment,
            "COMPOSE_FILE": "docker-compose.yml:tests/cluster/without-registry.yml",
            "COMPOSE_PROJECT_NAME": "shardfeed-tests",
            "EPOCHS": str(EPOCHS),
            "PIP_NO_INDEX": "1",  # the wheels beside the Dockerfile are all that is needed
        }

    def run(self, command: str, timeout: float = 100) -> str:
        """Run a command to its end; give what it printed. Debian's compose is the command with a dash."""
        words = shlex.split(command.replace("docker compose", "docker-compose"))
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        said = f"{done.stdout[-4000:]}{done.stderr[-4000:]}"
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{said}"
        return done.stdout

    def containers(self, service: str) -> list[str]:
        return self.run(f"docker compose ps --quiet {service}").split()

    def inspect(self, container: str, what: str) -> Any:
        return json.loads(self.run(f"docker inspect --format '{{{{json {what}}}}}' {container}"))

    def served(self, container: str) -> float:
        """How many samples a server has sent, as its figures say; 0 while it does not answer."""
        ask = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9880/metrics').read().decode())"
        try:
            figures = self.run(f'docker exec {container} python -c "{ask}"')
        except AssertionError:
            return 0
        return sum(map(float, re.findall(r"^shardfeed_samples_total\{.*\} (\S+)$", figures, re.MULTILINE)))

    def epochs(self) -> list[dict[str, Any]]:
        """What the trainer said of the epochs that it finished."""
        (trainer,) = self.containers("trainer")
        return [json.loads(line) for line in self.run(f"docker logs {trainer}").splitlines() if line.startswith("{")]

    def wait_until(self, condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come within {seconds:g} s:\n{self.logs()}"
            time.sleep(0.3)

    def logs(self) -> str:
        return self.run("docker compose logs --no-color --tail 30")


@pytest.fixture(scope="module")
def page() -> Page:
    return Page("compose.md")


@pytest.fixture(scope="module")
def built(docker: dict[str, str], checkout: Path) -> Cluster:
    """The cluster's images, and no container yet."""
    cluster = Cluster(checkout, docker)
    cluster.run("docker compose build", timeout=400)
    return cluster


@pytest.fixture
def cluster(built: Cluster, page: Page) -> Iterator[Cluster]:
    """The cluster, of which nothing is left afterwards: containers, networks and volumes."""
    down = page.command("docker compose down")
    built.run(down)  # what a killed run left
    yield built
    built.run(down)
    for what in ("ps --all", "network ls", "volume ls"):
        found = built.run(f"docker {what} --quiet --filter label=com.docker.compose.project=shardfeed-tests")
        assert found == "", f"docker {what} still shows {found}"


def test_the_sizes_on_the_page_are_those_of_the_images(built: Cluster, page: Page) -> None:
    options = "--network host --build-arg PIP_NO_INDEX=1"
    for command in (page.command("docker build", f"--target {t}") for t in ("server", "trainer")):
        built.run(command.replace("docker build", f"docker build {options}"), timeout=200)  # finds every layer made
    text = (FOLDER / "compose.md").read_text(encoding="utf-8")
    (base,) = re.findall(r"^ARG PYTHON=(\S+)$", (built.folder / "deploy/Dockerfile").read_text(), re.MULTILINE)
    for target in ("server", "trainer", "demo-data"):
        (said,) = re.findall(rf"^\| `{target}` \|.*\| (\d+) MB \|$", text, re.MULTILINE)
        sizes = [
            int(built.run(f"docker image inspect --format {{{{.Size}}}} {name}"))
            for name in (f"shardfeed-{target}", base)
        ]
        above = (sizes[0] - sizes[1]) / 1e6
        print(f"{target}: {above:.0f} MB above a base image of {sizes[1] / 1e6:.0f} MB")
        assert above == pytest.approx(int(said), rel=0.1)


def test_a_trainer_gets_every_sample_once_an_epoch_while_servers_die_and_join(cluster: Cluster, page: Page) -> None:
    cluster.run(page.command("docker compose up --detach"), timeout=UP_SECONDS)
    cluster.wait_until(cluster.epochs, "the first epoch")
    first, second, third = cluster.containers("loader")

    # Nobody is root, nothing can be written, and there is a bound on what one takes.
    for container in (first, *cluster.containers("trainer")):
        assert cluster.inspect(container, ".Config.User") == "10001:10001"
        assert cluster.inspect(container, ".HostConfig.ReadonlyRootfs") is True
        assert cluster.inspect(container, ".HostConfig.Memory") == 2 << 30
        assert cluster.inspect(container, ".HostConfig.NanoCpus") == 1_000_000_000
    assert cluster.run(f"docker exec {first} id --user").strip() == "10001"

    # One server dies of itself and is started again; another is killed, which Docker does not mend.
    cluster.run(f"docker exec --detach {first} python -c 'import os; os.kill(-1, 9)'")
    cluster.run(f"docker kill {second}")
    cluster.wait_until(lambda: cluster.inspect(first, ".RestartCount") == 1, "the restart of a server that died")

    # Two more servers under the name that the trainer follows.
    cluster.run(page.command("docker compose up --detach", "--scale"), timeout=UP_SECONDS)
    added = set(cluster.containers("loader")) - {first, second, third}
    assert len(added) >= 2
    assert cluster.run(page.command("docker compose ps")).count("(healthy)") >= 1
    cluster.wait_until(lambda: all(cluster.served(each) for each in added), "a sample from each server that was added")

    (trainer,) = cluster.containers("trainer")
    cluster.run("docker compose stop --timeout 60 trainer")
    assert cluster.inspect(trainer, ".State.ExitCode") == 0, cluster.logs()
    epochs = cluster.epochs()
    assert [epoch["epoch"] for epoch in epochs] == list(range(len(epochs)))
    assert {(epoch["samples"], epoch["different"]) for epoch in epochs} == {(SAMPLES, SAMPLES)}
    assert epochs[0]["digest"] == cluster.run(page.command("docker compose exec")).strip()
    assert '"epoch": 0' in cluster.run(page.command("docker compose logs"))


def test_every_command_of_the_page_was_run(page: Page) -> None:
    page.check()
