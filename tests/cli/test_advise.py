"""`shardfeed advise`: what it measures is what the workers do, and what it concludes follows from that."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shardfeed_cli.advise import advice
from shardfeed_server.measure import Measured
from tests.cli.command import run
from tests.photographs import Photographs, write_shards

pytestmark = pytest.mark.timeout(120)

PAUSE = 0.02
CONFIGURATION = """\
workers = 2
code_dir = "."

[streams.slow]
shards = "train-{000000..000001}.tar"
fields = "cls"
transform = "slowly:apply"

[streams.other]
shards = "train-000000.tar"
fields = "cls"
"""
SLOWLY = f"""\
import time

def apply(sample, generator):
    time.sleep({PAUSE})
    return sample
"""


@pytest.fixture
def config(tmp_path: Path, photographs: Photographs) -> Path:
    """A stream whose transform takes 20 ms a sample, and little else."""
    samples = [(key, {"jpg": jpeg, "cls": b"%d" % label}) for key, jpeg, label in photographs[:40]]
    write_shards(tmp_path, samples, 2)
    (tmp_path / "slowly.py").write_text(SLOWLY)
    (tmp_path / "shardfeed.toml").write_text(CONFIGURATION)
    return tmp_path / "shardfeed.toml"


def test_it_measures_the_streams_own_recipe_and_counts_servers_from_that(config: Path) -> None:
    done = run("advise", config, "--rate", "1000", "--stream", "slow", "--seconds", "1")
    assert done.returncode == 0, done.stderr
    runs = re.findall(
        r"^  (\d+) workers?: ([\d,]+) samples in ([\d.]+) s, ([\d,]+) samples/s", done.stdout, re.MULTILINE
    )
    assert [int(workers) for workers, *_ in runs] == [1, 2]
    for workers, samples, seconds, rate in runs:
        # A worker that sleeps 20 ms a sample cannot do more than 50 a second, and a laden machine does less.
        assert 5 * int(workers) < int(rate) <= int(workers) / PAUSE
        assert int(samples) / float(seconds) == pytest.approx(int(rate), rel=0.1)
    (written,) = re.findall(r"servers like this one: 1,000 / ([\d,]+) = ([\d.]+), so (\d+)$", done.stdout, re.MULTILINE)
    assert written[0] == runs[1][3]
    assert int(written[2]) == -(-float(written[1]) // 1)
    assert "other" not in done.stdout


def test_a_small_rate_needs_no_server_where_cores_are_left(config: Path) -> None:
    config.write_text(CONFIGURATION.replace("workers = 2", "workers = 1"))
    done = run("advise", config, "--rate", "0.1", "--seconds", "0.2")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("stream ")] == [
        "stream slow: 0.2 s each, 32 samples a request in random order, no network",
        "stream other: 0.2 s each, 32 samples a request in random order, no network",
    ]
    if "1 cores here" not in done.stdout:
        assert f'RemoteDataset("local:{config}", stream="other", batch_size=64)' in done.stdout


def test_a_stream_that_there_is_not_is_named_with_those_that_are(config: Path) -> None:
    done = run("advise", config, "--rate", "1", "--stream", "val")
    assert done.returncode == 1
    assert "no stream 'val'; there are: other, slow" in done.stderr


def measured(rate: float, workers: int) -> Measured:
    return Measured(
        workers=workers,
        samples=round(rate * 10),
        seconds=10.0,
        reading=1.0,
        decoding=8.0,
        collating=1.0,
        cpu=10.0,
        size=round(rate * 10) * 150_000,
    )


def told(rate: float, cores: int) -> str:
    return "\n".join(advice(measured(2400.0, 2), rate=rate, cores=cores, config="shardfeed.toml", stream="train"))


def test_local_serves_up_to_the_cores_less_the_trainers_own() -> None:
    assert "needs no server" in told(1199, cores=2)
    assert "1,199 / 1,200 = 1.0 workers' cores" in told(1199, cores=2)
    assert "2 cores here, less 1 for the trainer, are 1: too few" in told(1201, cores=2)
    assert "needs no server" not in told(1, cores=1)


@pytest.mark.parametrize(("rate", "servers"), [(2400, 1), (2401, 2), (4800, 2), (24_000, 10)])
def test_servers_are_the_rate_over_one_servers_rate_rounded_up(rate: float, servers: int) -> None:
    text = told(rate, cores=2)
    assert f"so {servers}\n" in text
    assert f"they send the trainer {rate * 0.15:,.1f} MB/s" in text
