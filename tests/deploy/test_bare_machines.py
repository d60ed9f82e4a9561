"""The commands of the page for bare machines: a service under a real systemd, and a job on a real Slurm."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardfeed import RemoteDataset
from shardfeed_server import serve
from tests.debian import debian_program
from tests.deploy.machine import run_on_machine
from tests.deploy.pages import FOLDER, Page
from tests.deploy.slurm import run_on_slurm
from tests.requirements import require

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy/systemd/shardfeed.service"
SCRIPT = ROOT / "deploy/slurm/shardfeed.sbatch"

pytestmark = [pytest.mark.container, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def page() -> Page:
    return Page("bare-machines.md")


def run(*command: object, cwd: Path = ROOT) -> str:
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def configuration() -> str:
    """The page's shardfeed.toml."""
    (text,) = re.findall(r"^```toml\n(.*?)^```$", (FOLDER / "bare-machines.md").read_text(), re.MULTILINE | re.DOTALL)
    return text


# ------------------------------------------------------------------------------------------- systemd


def setting(name: str) -> str:
    (value,) = re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)
    return value


CHECKOUT = "/srv/checkout"
PACKAGES = {
    f"/srv/packages-{number}": Path(folder)
    for number, folder in enumerate(sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
}
"""Where the machine has the checkout, and the packages of the tests' environment."""


def on_machine(command: str) -> str:
    """A command of the page, with what it installs taken from the tests' own environment: torch again is 200 MB."""
    command = command.replace("pip install", "pip install --quiet --no-index --no-deps --no-build-isolation")
    if "-m venv" in command:
        seen = "\\n".join(PACKAGES)
        command += f"\nprintf '{seen}\\n' > $(echo /opt/shardfeed/lib/python3*/site-packages)/dependencies.pth"
    return command


def test_the_commands_of_the_page_make_a_service_that_serves_reloads_and_drains(page: Page, tmp_path: Path) -> None:
    require("container", os.geteuid() == 0, "only root boots a systemd")
    require("container", debian_program("systemd-nspawn", "systemd-container"), "there is no systemd-nspawn")
    commands = [page.command(line) for line in page.commands if not line.startswith(("export", "sbatch"))]
    (tmp_path / "shardfeed.toml").write_text(configuration())
    (tmp_path / "data").mkdir()
    run(sys.executable, ROOT / "examples/pack_digits.py", tmp_path / "data")
    digest = "/opt/shardfeed/bin/shardfeed digest tcp://127.0.0.1:7880 --stream train"
    digest += " --curve /etc/shardfeed/keys/trainer.toml"
    opened = " ".join(map(str, Path(sys.base_prefix).parents))
    script = [
        f"chmod a+rx {opened}",  # where the service's user may have to look for Python
        "cp -r /mnt/data /data && chmod -R a+rX /data",
        "install -D /mnt/shardfeed.toml /etc/shardfeed/shardfeed.toml --mode 644",
        f"cd {CHECKOUT}",
        *map(on_machine, commands),
        "systemd-analyze verify shardfeed.service 2>&1 | (! grep shardfeed)",
        "systemd-analyze security --threshold=20 shardfeed.service >/dev/null",  # of 100
        "trap 'journalctl --unit shardfeed --output cat --no-pager | tail -30' ERR",
        "systemctl start shardfeed",
        digest,  # which waits until it serves
        "before=$(systemctl show --property=MainPID shardfeed)",
        "systemctl reload shardfeed",
        "until journalctl --unit shardfeed | grep --quiet 'the configuration was re-read'; do sleep 0.2; done",
        digest,
        '[[ $(systemctl show --property=MainPID shardfeed) == "$before" ]]',
        "ps -o user= -p ${before#MainPID=}",
        "systemctl stop shardfeed",
        "systemctl show --property=Result --property=NRestarts shardfeed",
        "journalctl --no-pager --unit shardfeed --output cat",
    ]
    files = {path.name: path for path in tmp_path.iterdir()}
    said = run_on_machine("\n".join(script), files, {CHECKOUT: ROOT, **PACKAGES})
    assert len(set(re.findall(r"^[0-9a-f]{32}$", said, re.MULTILINE))) == 1, said
    assert len(re.findall(r"^[0-9a-f]{32}$", said, re.MULTILINE)) == 2, said
    assert re.search(r"^shardfe", said, re.MULTILINE), said
    assert {"Result=success", "NRestarts=0"} <= set(said.splitlines()), said
    assert "draining: " in said, said


def test_a_server_has_the_time_that_it_takes_to_drain() -> None:
    assert int(setting("TimeoutStopSec")) > serve._DRAIN_SECONDS + 2 * serve._LINGER_SECONDS


# --------------------------------------------------------------------------------------------- Slurm


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a name short enough for Slurm's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="sf-slurm-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def test_a_job_of_servers_and_trainers_runs_on_slurm(page: Page, folder: Path) -> None:
    require("container", os.geteuid() == 0, "only root starts Slurm in namespaces of its own")
    for program, package in {"slurmctld": "slurm-wlm", "munged": "munge"}.items():
        require("container", debian_program(program, package), f"there is no {program}")
    here = folder / "here"
    (here / "data").mkdir(parents=True)
    for name in ("deploy", "examples"):
        (here / name).symlink_to(ROOT / name)
    programs = Path(sys.executable).parent
    run(sys.executable, ROOT / "examples/pack_digits.py", here / "data")
    run(programs / "shardfeed", "keygen", here / "keys")
    text = configuration().replace('"/data/', f'"{here}/data/') + "\n"
    (here / "shardfeed.toml").write_text('http = "off"\n' + text)

    export, submit = page.command("export SHARDFEED_CONFIG"), page.command("sbatch")
    script = f"""
        {export}
        {submit.replace("sbatch", "sbatch --test-only", 1)}
        job=$({submit.replace("sbatch", "sbatch --parsable --output=job.log", 1)} --epochs 2)
        state() {{ scontrol --oneliner show job "$1" | grep --only-matching 'JobState=[A-Z]*'; }}
        ended() {{ while [[ $(state "$1") =~ PENDING|RUNNING|COMPLETING ]]; do sleep 0.3; done; }}
        ended "$job"
        state "$job"
        cat job.log
        wrong=$(sbatch --parsable --output=wrong.log --nodes=1 --constraint=gpu {SCRIPT.relative_to(ROOT)} true)
        ended "$wrong"
        state "$wrong"
        cat wrong.log
    """
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    features = {"data1": "data", "data2": "data", "gpu1": "gpu", "gpu2": "gpu"}
    said = run_on_slurm(script, features, folder=folder, here=here, environment=environment)

    said, asked_for_no_data, why = said.partition("JobState=FAILED")
    assert asked_for_no_data
    assert "0 nodes have the feature 'data'" in why
    assert "JobState=COMPLETED" in said, said
    assert {*re.findall(r"^listening on tcp://(\S+):7880:", said, re.MULTILINE)} == {"10.99.0.11", "10.99.0.12"}
    assert said.count("draining: ") == 2, said
    epochs = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert len(epochs) == 4  # of two ranks
    for number in range(2):
        of_ranks = [epoch for epoch in epochs if epoch["epoch"] == number]
        assert sum(epoch["samples"] for epoch in of_ranks) == 1437
        assert sum(epoch["different"] for epoch in of_ranks) == 1437
    # Of the two ranks together, the digest is what one rank gets from a server here.
    first = sum(int(epoch["digest"], 16) for epoch in epochs if epoch["epoch"] == 0) % (1 << 128)
    local = here / "local.toml"
    local.write_text(re.sub(r"^(bind|curve|http).*\n", "", text, flags=re.MULTILINE))
    with RemoteDataset(f"local:{local}", stream="train", batch_size=64) as dataset:
        for _ in dataset:
            pass
        assert f"{first:032x}" == dataset.digest


def test_shellcheck_finds_nothing_in_the_scripts() -> None:
    require("container", debian_program("shellcheck", "shellcheck"), "there is no shellcheck")
    images = (ROOT / "tests/cluster" / name for name in ("base-image", "prometheus-image"))
    run("shellcheck", SCRIPT, ROOT / "deploy/docker/shrink", *images)


def test_every_command_of_the_page_was_run(page: Page) -> None:
    page.check()
