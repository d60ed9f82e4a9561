"""A real Slurm of four nodes on this machine, in namespaces of its own, in which commands run as on a login node."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

__all__ = ["run_on_slurm"]

CONFIGURATION = """\
ClusterName=tests
SlurmctldHost=login(127.0.0.1)
SlurmctldPort=17000
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
KillWait=60
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

# Runs as the first process of its namespaces: what it leaves is gone with it. Slurm finds no address of its own on
# loopback alone, so there is a link, whose addresses are the nodes'.
INSIDE = """\
set -eu
cd {folder}
ip link set lo up
ip link add link0 type veth peer name link1
{addresses}
ip link set link0 up
ip link set link1 up
mount --bind {folder}/hosts /etc/hosts
hostname login
mkdir state {spools}
dd if=/dev/urandom of=munge.key bs=1024 count=1 status=none
chmod 600 munge.key
munged --force --foreground --num-threads=2 --key-file={folder}/munge.key --socket={folder}/munge.socket \
    --pid-file={folder}/munge.pid --log-file={folder}/munge.log --seed-file={folder}/munge.seed >munged.out 2>&1 &
until [ -S munge.socket ]; do sleep 0.1; done
export SLURM_CONF={folder}/slurm.conf
slurmctld -D >slurmctld.out 2>&1 &
for node in {names}; do slurmd -D -N "$node" >"slurmd-$node.out" 2>&1 & done
until [ "$(sinfo --noheader --Node --states=idle 2>/dev/null | wc -l)" = {count} ]; do sleep 0.2; done
cd {here}
eval "$1"
"""

PATH = "/usr/sbin:/sbin"


def run_on_slurm(
    script: str, features: dict[str, str], *, folder: Path, here: Path, environment: dict[str, str]
) -> str:
    """Run a shell script beside a Slurm with a node of each name in ``features``; give what it printed.

    ``folder`` must have a short name, and is used for all that Slurm writes; ``here`` is where the script runs.
    """
    addresses = {name: f"10.99.0.{number}" for number, name in enumerate(features, 11)}
    nodes = [
        f"NodeName={name} NodeAddr={name} NodeHostname=login Port={17010 + number} CPUs=2 Feature={feature}"
        for number, (name, feature) in enumerate(features.items())
    ]
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, nodes="\n".join(nodes)))
    hosts = {"localhost": "127.0.0.1", "login": "127.0.0.1", **addresses}
    (folder / "hosts").write_text("".join(f"{address} {name}\n" for name, address in hosts.items()))
    inside = INSIDE.format(
        folder=folder,
        here=here,
        addresses="\n".join(f"ip address add {address}/24 dev link0" for address in addresses.values()),
        names=" ".join(features),
        spools=" ".join(f"spool-{name}" for name in features),
        count=len(features),
    )
    apart = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    done = subprocess.run(
        [*apart, "bash", "-c", inside, "-", script],
        env={**environment, "PATH": f"{environment['PATH']}{os.pathsep}{PATH}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    logs = "\n".join(f"--- {log.name}\n{log.read_text()[-1500:]}" for log in sorted(folder.glob("*.out")))
    assert done.returncode == 0, f"it ended with {done.returncode}:\n{done.stdout}{done.stderr}\n{logs}"
    return re.sub(r"^munged: .*\n", "", done.stdout, flags=re.MULTILINE)
