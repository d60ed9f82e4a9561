"""What the tests with training frameworks share: their environment, and a server of samples that each have a label."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.frameworks.environment import frameworks
from tests.interop.environments import CannotInstall
from tests.photographs import Photographs
from tests.requirements import require
from tests.system.loaders import Loader, write_photographs

SAMPLES, RANKS = 96, 2


def torchrun(ranks: int) -> list[str]:
    """What follows an interpreter, and comes before a program, to start ranks of it."""
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]


@pytest.fixture(scope="package")
def server(photographs: Photographs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loader]:
    labelled = [each._replace(label=number) for number, each in enumerate(photographs[:SAMPLES])]
    shards = write_photographs(tmp_path_factory.mktemp("frameworks"), labelled, count=3)
    with Loader.of(shards, "--resize", "32x32", "--workers", "1") as server:
        yield server


@pytest.fixture(scope="session")
def installed_frameworks() -> Path | str:
    """The python that has the frameworks, or why there is none."""
    try:
        return frameworks()
    except CannotInstall as error:
        return str(error)


@pytest.fixture
def python(installed_frameworks: Path | str) -> Path:
    """The python that has the frameworks and our client."""
    require("peers", isinstance(installed_frameworks, Path), str(installed_frameworks))
    assert isinstance(installed_frameworks, Path)
    return installed_frameworks
