"""The local cluster for real: an engine, images made from this checkout, and every command of its page."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.pages import FOLDER, Page

pytestmark = [pytest.mark.container, pytest.mark.timeout(600)]

SAMPLES = 1437  # of the digits, those to train with
EPOCHS = 100_000  # more than there is time for: the trainer is told to stop when servers have died and joined
PATIENCE = 120.0
UP_SECONDS = 240.0
CPU_BUILDS = "file:///src/deploy/docker/wheels/cpu"  # an index with a torch, as a build sees it


class Cluster:
    """A copy of the checkout in which commands run as a user types them, and what they printed."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = {
            **environment,
            "COMPOSE_FILE": "docker-compose.yml:tests/cluster/without-registry.yml",
            "COMPOSE_PROJECT_NAME": "shardfeed-tests",
            "EPOCHS": str(EPOCHS),
            "PIP_INDEX_URL": "file:///nowhere",  # the wheels beside the Dockerfile are all that is needed
            "PIP_EXTRA_INDEX_URL": CPU_BUILDS,
            "PROMETHEUS_PORT": "0",  # a free one, and so is Grafana's
            "GRAFANA_PORT": "0",
        }

    def run(self, command: str, timeout: float = 100) -> str:
        """Run a command, which may begin with variables, to its end; give what it printed."""
        done = subprocess.run(
            ["env", *shlex.split(command)],
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

    @contextmanager
    def in_foreground(self, command: str) -> Iterator[subprocess.Popen[bytes]]:
        """A command that runs until a user ends it with Ctrl-C, which comes at the end of the block."""
        words = ["env", *shlex.split(command)]
        with (
            tempfile.TemporaryFile() as said,
            subprocess.Popen(
                words, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said
            ) as process,
        ):
            try:
                yield process
            finally:
                process.send_signal(signal.SIGINT)
                process.wait(PATIENCE)

    def containers(self, service: str) -> list[str]:
        return self.run(f"docker compose ps --all --quiet {service}").split()

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

    def scraped(self) -> list[str]:
        """The servers that Prometheus finds by their name, and that answered when it last asked."""
        port = self.run("docker compose port prometheus 9090").strip()
        try:
            with urllib.request.urlopen(f"http://{port}/api/v1/targets?state=active", timeout=10) as answer:
                targets = json.load(answer)["data"]["activeTargets"]
        except OSError:  # it is not up yet
            return []
        return [target["scrapeUrl"] for target in targets if target["health"] == "up"]

    def epochs(self) -> list[dict[str, Any]]:
        """What the trainer said of the epochs that it finished; nothing where there is none yet."""
        logs = [self.run(f"docker logs {trainer}") for trainer in self.containers("trainer")]
        return [json.loads(line) for log in logs for line in log.splitlines() if line.startswith("{")]

    def wait_until(self, condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come within {seconds:g} s:\n{self.logs()}"
            time.sleep(0.3)

    def logs(self) -> str:
        return self.run("docker compose logs --no-color --tail 30")


def older(command: str) -> str:
    """A command of the page for docker-compose 1.29."""
    return command.replace("docker compose", "docker-compose")


@pytest.fixture(scope="module")
def page() -> Page:
    return Page("compose.md")


@pytest.fixture(scope="module")
def built(docker: dict[str, str], checkout: Path, has_grafana: bool, page: Page) -> Cluster:
    """The cluster's images, and no container yet. torch is in no other place than the index that the page speaks of."""
    cluster = Cluster(checkout, docker)
    if not has_grafana:
        cluster.environment["COMPOSE_FILE"] += ":tests/cluster/without-grafana.yml"
    command = page.command("PIP_EXTRA_INDEX_URL=URL docker compose build")
    cluster.run(command.replace("URL docker", f"{CPU_BUILDS} docker"), timeout=400)
    return cluster


@pytest.fixture
def cluster(built: Cluster, page: Page) -> Iterator[Cluster]:
    """The cluster, of which nothing is left afterwards: containers, networks and volumes."""
    down = page.command("docker compose down")
    for left in (down, older(down)):  # by a run that was killed
        built.run(left)
    yield built
    built.run(down)
    for what in ("ps --all", "network ls", "volume ls"):
        found = built.run(f"docker {what} --quiet --filter label=com.docker.compose.project=shardfeed-tests")
        assert found == "", f"docker {what} still shows {found}"


def test_the_sizes_on_the_page_are_those_of_the_images(built: Cluster, page: Page) -> None:
    arguments = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX")
    given = " ".join(f"--build-arg {name}={built.environment.get(name, '')}" for name in arguments)
    for command in (page.command("docker build", f"--target {t}") for t in ("server", "trainer")):
        options = f"--network host {given}"  # the same, so that every layer is found made
        built.run(command.replace("docker build", f"docker build {options}"), timeout=200)
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
    cluster.wait_until(lambda: len(cluster.scraped()) == 3, "the figures of three servers in Prometheus")
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
    cluster.wait_until(lambda: len(cluster.scraped()) == 5, "the figures of five servers in Prometheus")

    (trainer,) = cluster.containers("trainer")
    cluster.run("docker compose stop --timeout 60 trainer")
    assert cluster.inspect(trainer, ".State.ExitCode") == 0, cluster.logs()
    epochs = cluster.epochs()
    assert [epoch["epoch"] for epoch in epochs] == list(range(len(epochs)))
    assert {(epoch["samples"], epoch["different"]) for epoch in epochs} == {(SAMPLES, SAMPLES)}
    assert epochs[0]["digest"] == cluster.run(page.command("docker compose exec")).strip()
    assert '"epoch": 0' in cluster.run(page.command("docker compose logs"))


def test_an_older_compose_takes_the_same_file_and_trains_longer(cluster: Cluster, page: Page) -> None:
    up, down = older(page.command("EPOCHS=")), older(page.command("docker compose down"))
    asked = int(re.findall(r"EPOCHS=(\d+)", up)[0])
    try:
        with cluster.in_foreground(up) as program:
            cluster.wait_until(lambda: program.poll() is not None or len(cluster.epochs()) == asked, "the last epoch")
            (trainer,) = cluster.containers("trainer")
            cluster.wait_until(lambda: cluster.inspect(trainer, ".State.Status") == "exited", "the trainer's end")
            assert cluster.inspect(trainer, ".State.ExitCode") == 0
            assert len(cluster.epochs()) == asked
    finally:
        cluster.run(down)


WITH_SCTP = """
import sctp, shardfeed
assert "libsctp" in open("/proc/self/maps").read()
next(iter(shardfeed.RemoteDataset("sctp://127.0.0.1:7880", batch_size=1, connect_timeout=1)))
"""


@pytest.mark.parametrize("target", ["server", "trainer"])
def test_an_image_has_the_libraries_of_sctp_and_says_what_a_kernel_lacks(built: Cluster, target: str) -> None:
    without = r"EndpointError: .*this kernel has no SCTP; load it with `modprobe sctp`"
    with pytest.raises(AssertionError, match=r"ConnectError" if kernel_has_sctp() else without):
        built.run(f"docker run --rm --entrypoint python shardfeed-{target} -c {shlex.quote(WITH_SCTP)}")


def test_a_server_in_an_image_decodes_parts_of_jpegs_alone(built: Cluster) -> None:
    asked = "from webdataset.images import decodes_parts; print(decodes_parts())"
    assert built.run(f"docker run --rm --entrypoint python shardfeed-server -c {shlex.quote(asked)}").strip() == "True"


def kernel_has_sctp() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError:
        return False
    return True


def test_every_command_of_the_page_was_run(page: Page) -> None:
    page.check()
