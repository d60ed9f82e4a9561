"""The commands of the page for bare machines: an installation below another root, and a job on a real Slurm."""

from __future__ import annotations

import json
import os
import re
import shlex
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


def below(command: str, root: Path) -> str:
    """A command of the page, that takes ``root`` for the root folder."""
    command = re.sub(r"(?<=\s)/(etc|opt)/|^/(etc|opt)/", lambda found: f"{root}{found[0]}", command)
    command = command.replace("systemd-sysusers", f"systemd-sysusers --root={root}")
    command = command.replace("systemctl", f"systemctl --root={root}")
    # Its dependencies are those of the tests: torch again would be 200 MB.
    command = command.replace("pip install", "pip install --quiet --no-index --no-deps --no-build-isolation")
    if command.startswith("chgrp"):  # the user is one of that root's, not of this machine's
        (group,) = re.findall(r"^shardfeed:x:(\d+):", (root / "etc/group").read_text(), re.MULTILINE)
        command = command.replace("-R shardfeed", f"-R {group}")
    return command


@pytest.fixture(scope="module")
def root(page: Page, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page's commands, as far as systemd's, leave below a folder that is not the machine's root."""
    require("container", os.geteuid() == 0, "only root installs a service")
    require("container", debian_program("systemd-sysusers", "systemd"), "there is no systemd")
    root = tmp_path_factory.mktemp("root")
    (root / "etc").mkdir()
    for line in page.commands:
        if line.startswith(("export", "sbatch")):
            continue
        run("bash", "-ec", below(page.command(line), root))
        if "-m venv" in line:
            (site,) = root.glob("opt/shardfeed/lib/python3*/site-packages")
            (site / "dependencies.pth").write_text(
                f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n"
            )
    return root


def setting(name: str) -> str:
    (value,) = re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)
    return value


def test_the_commands_of_the_page_install_a_service(root: Path) -> None:
    assert (root / "etc/systemd/system/multi-user.target.wants/shardfeed.service").is_symlink()
    assert re.search(rf"^{setting('User')}:x:", (root / "etc/passwd").read_text(), re.MULTILINE)
    program, *arguments = shlex.split(setting("ExecStart"))
    assert run(f"{root}{program}", "--version") == run(Path(sys.executable).parent / "shardfeed", "--version")
    assert "--config" in run(f"{root}{program}", arguments[0], "--help")
    keys = root / "etc/shardfeed/keys"
    assert {path.stat().st_mode & 0o077 for path in (keys / "server.toml", keys / "trainer.toml")} == {0o040}


def test_systemd_takes_the_unit_and_finds_it_safe(root: Path) -> None:
    unit = root / "etc/systemd/system/shardfeed.service"
    checked = root / "shardfeed.service"
    checked.write_text(unit.read_text().replace("/opt/", f"{root}/opt/"))
    done = subprocess.run(
        ["systemd-analyze", "verify", checked], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, [line for line in done.stderr.splitlines() if "shardfeed" in line]) == (0, [])
    run("systemd-analyze", "security", "--offline=true", "--threshold=20", checked)  # of 100; 96 without the settings


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
    run("shellcheck", SCRIPT, ROOT / "deploy/docker/shrink", ROOT / "tests/cluster/base-image")


def test_every_command_of_the_page_was_run(page: Page) -> None:
    page.check()
