"""A server that would import somebody else's ``webdataset`` says so, in one error, however it came about."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.interop.environments import PEERS, ROOT, fresh, install, run
from tests.webdataset.tars import write_tar

IMPORT = "import sys, shardfeed_server; print('torch' in sys.modules)"
SERVE = """
from shardfeed import RemoteDataset
with RemoteDataset("local:" + __import__("sys").argv[1], stream="train", batch_size=2, shuffle=False) as train:
    print([labels.tolist() for (labels,) in train])
"""


def refused(*command: object, path: Path | None = None) -> str:
    """Run a command that must end with status 1, away from the checkout; give the last line of what it said."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, timeout=60, cwd="/", env=environment
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Give a folder with a package named webdataset that must not be run."""
    (tmp_path / "foreign/webdataset").mkdir(parents=True)
    (tmp_path / "foreign/webdataset/__init__.py").write_text("raise SystemExit('it was imported')\n")
    return tmp_path / "foreign"


def test_another_package_of_that_name_is_named_with_its_file_and_the_way_out(foreign: Path) -> None:
    said = refused(sys.executable, "-c", IMPORT, path=foreign)
    assert said.startswith("shardfeed_wire.errors.ConfigError: `import webdataset` means ")
    assert f"{foreign}/webdataset/__init__.py here" in said
    assert "python3 -m venv DIR" in said
    assert "shardfeed-client" in said


def test_the_command_line_prints_it_as_an_error(foreign: Path) -> None:
    said = refused(sys.executable, "-m", "shardfeed", "serve", "x.tar", "--fields", "jpg cls", path=foreign)
    assert said.startswith(f"error: `import webdataset` means {foreign}/webdataset/__init__.py here")


def test_what_an_uninstallation_leaves_of_ours_is_named(foreign: Path) -> None:
    # An empty folder alone does not hide a package that comes later on the path, so the path ends with it.
    (foreign / "webdataset/__init__.py").unlink()
    code = "import sys; sys.path[:] = [p for p in sys.path if p != sys.argv[1]] + [sys.argv[2]]\n" + IMPORT
    said = refused(sys.executable, "-c", code, ROOT, foreign)
    assert f"webdataset is incomplete: {foreign}/webdataset has no __init__.py" in said


def test_a_missing_package_is_named() -> None:
    code = "import sys; sys.path[:] = [p for p in sys.path if p != sys.argv[1]]\n" + IMPORT
    assert "shardfeed's own package webdataset is missing" in refused(sys.executable, "-c", code, ROOT)


def test_ours_is_recognised_without_importing_torch() -> None:
    assert run(sys.executable, "-c", IMPORT).strip() == "False"


# ---------------------------------------------------------------------------- in real environments


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """Write a shard and what serves it."""
    shard = write_tar(tmp_path / "x.tar", [(f"{number}.cls", str(number).encode()) for number in range(4)])
    path = tmp_path / "shardfeed.toml"
    path.write_text(f'workers = 1\n[streams.train]\nshards = "{shard}"\nfields = "cls"\n')
    return path


def assert_named(python: Path, shard: str = "x.tar") -> None:
    """The error names PyPI's package by file and version, comes without PyTorch, and is one line for the command."""
    folder = next(python.parents[1].glob("lib/python*/site-packages/webdataset"))
    for said in (
        refused(python, "-c", IMPORT),
        refused(python, "-m", "shardfeed", "serve", shard, "--fields", "cls"),
    ):
        assert f"`import webdataset` means {folder}/__init__.py (of PyPI's webdataset 1.0.2) here" in said


@pytest.mark.peers
@pytest.mark.timeout(240)
def test_installed_after_ours_the_other_is_named_and_the_way_out_leads_out(
    built: dict[str, Path], peer_wheels: Path, tmp_path: Path, configuration: Path
) -> None:
    python = fresh(tmp_path / "venv")
    ours = ["--ignore-installed", "--no-deps", built["shardfeed"]]
    install(python, *ours, wheels=peer_wheels)
    install(python, PEERS[0], wheels=peer_wheels)
    assert_named(python)

    run(sys.executable, "-m", "pip", "--python", python, "uninstall", "--yes", "--quiet", "webdataset")
    assert "webdataset is incomplete" in refused(python, "-c", IMPORT)
    install(python, "--force-reinstall", *ours, wheels=peer_wheels)
    assert run(python, "-c", SERVE, configuration).strip() == "[[0, 1], [2, 3]]"


@pytest.mark.peers
@pytest.mark.timeout(240)
def test_installed_before_ours_the_other_is_overwritten_and_a_server_serves(
    built: dict[str, Path], peer_wheels: Path, tmp_path: Path, configuration: Path
) -> None:
    python = fresh(tmp_path / "venv")
    install(python, PEERS[0], wheels=peer_wheels)
    install(python, "--ignore-installed", "--no-deps", built["shardfeed"], wheels=peer_wheels)
    assert run(python, "-c", SERVE, configuration).strip() == "[[0, 1], [2, 3]]"


@pytest.mark.peers
@pytest.mark.timeout(240)
@pytest.mark.parametrize("first", ["shardfeed", "webdataset"])
def test_beside_an_editable_installation_the_other_is_named_in_either_order(
    peer_wheels: Path, tmp_path: Path, first: str
) -> None:
    python = fresh(tmp_path / "venv")
    ours = ["--no-build-isolation", "--ignore-installed", "--no-deps", "--editable", ROOT]
    for what in (ours, PEERS[:1]) if first == "shardfeed" else (PEERS[:1], ours):
        install(python, *what, wheels=peer_wheels)
    assert_named(python)
