"""What the tests with other people's programs share: their environment, and our wheels."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.debian import debian_program
from tests.interop import environments
from tests.requirements import require


@pytest.fixture(scope="session")
def installed_peers() -> tuple[Path, Path] | str:
    """The peers' python and the folder of their wheels, or why there are none."""
    try:
        return environments.peers()
    except environments.CannotInstall as error:
        return str(error)


@pytest.fixture
def peer(installed_peers: tuple[Path, Path] | str) -> Path:
    """The python that has PyPI's webdataset and tensorcom, and nothing of ours."""
    require("peers", not isinstance(installed_peers, str), str(installed_peers))
    return installed_peers[0]


@pytest.fixture
def peer_wheels(installed_peers: tuple[Path, Path] | str) -> Path:
    """The folder with the wheels of PyPI's webdataset and tensorcom, and of what they need."""
    require("peers", not isinstance(installed_peers, str), str(installed_peers))
    return installed_peers[1]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Our two wheels, by the names of their distributions."""
    wheels = {}
    for name, folder in {"shardfeed": ".", "shardfeed-client": "client"}.items():
        target = tmp_path_factory.mktemp(name)
        environments.run(
            sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", target, environments.ROOT / folder
        )
        (wheels[name],) = target.glob("*.whl")
    return wheels


@pytest.fixture(scope="session")
def bsdtar() -> str | None:
    """The path of bsdtar, installed where it can be."""
    return debian_program("bsdtar", "libarchive-tools")
