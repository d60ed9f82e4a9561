"""What the distributions hold, and what installing them does to an environment."""

from __future__ import annotations

import email.parser
import json
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from email.message import Message
from pathlib import Path

import pytest

from tests.requirements import require
from webdataset.images import decodes_parts

ROOT = Path(__file__).parents[2]
CLIENT = {"shardfeed", "shardfeed_wire"}
ALL = CLIENT | {"shardfeed_cli", "shardfeed_server", "webdataset"}


def run(*command: object) -> str:
    """Run a command to its end; give what it printed."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(folder: Path, into: Path) -> Path:
    """Build the wheel of a folder's pyproject.toml, with the hatchling that is installed."""
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", into, folder)
    (wheel,) = into.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("everything"))


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT / "client", tmp_path_factory.mktemp("client"))


def contents(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def sources(package: str) -> set[str]:
    """The files of a package in the checkout, by their names in a wheel."""
    (folder,) = (path for path in [ROOT / package, *ROOT.glob(f"*/{package}")] if (path / "__init__.py").exists())
    return {
        path.relative_to(folder.parent).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.parser.BytesParser().parsebytes(archive.read(name))


def test_shardfeed_holds_the_five_packages_whole(everything: Path) -> None:
    assert contents(everything) == set().union(*map(sources, ALL))


def test_shardfeed_client_holds_client_and_wire_and_nothing_named_webdataset(client: Path) -> None:
    assert contents(client) == set().union(*map(sources, CLIENT))


@pytest.fixture(scope="session")
def jpegcrop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("jpegcrop", decodes_parts(), "shardfeed-jpegcrop is not installed: scripts/install says what it needs")
    folder = tmp_path_factory.mktemp("jpegcrop")
    shutil.copytree(ROOT / "jpegcrop", folder / "jpegcrop")  # setuptools builds beside the sources
    return build(folder / "jpegcrop", folder)


def test_shardfeed_jpegcrop_is_one_wheel_for_every_python_and_holds_its_extension_with_types(jpegcrop: Path) -> None:
    named = {f"shardfeed_jpegcrop/{name}" for name in ("__init__.py", "_decoder.pyi", "_decoder.abi3.so", "py.typed")}
    assert contents(jpegcrop) == named
    assert jpegcrop.name.startswith("shardfeed_jpegcrop-0.1.0-cp311-abi3-")


def test_all_carry_the_licence(everything: Path, client: Path, jpegcrop: Path) -> None:
    for wheel in (everything, client, jpegcrop):
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("/LICENSE"))
            assert archive.read(name) == (ROOT / "LICENSE").read_bytes()


def test_the_packages_say_that_they_are_typed() -> None:
    assert {package for package in ALL if f"{package}/py.typed" in sources(package)} == ALL


def test_both_distributions_ask_for_the_same_and_have_one_version() -> None:
    both = [tomllib.loads((ROOT / name).read_text())["project"] for name in ("pyproject.toml", "client/pyproject.toml")]
    for key in ("version", "requires-python", "license", "dependencies"):
        assert both[0][key] == both[1][key]


def test_the_packages_ask_for_a_range_of_torch(client: Path) -> None:
    (torch,) = (asked for asked in metadata(client).get_all("Requires-Dist", []) if asked.startswith("torch"))
    assert "==" not in torch
    assert ">=" in torch


def stand_in(name: str, version: str, folder: Path) -> Path:
    """A wheel that bears a package's name and version and holds one file: what pip resolves and installs is real."""
    info = f"{name}-{version}.dist-info"
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}.py", f"__version__ = {version!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return wheel


def test_installing_the_client_leaves_another_torch_alone(client: Path, tmp_path: Path) -> None:
    """A real second torch is gigabytes, so the other torch, and a newer one to be tempted by, are stand-ins.

    The resolver and the installer are pip's own. The other dependencies are stand-ins too, so that this
    needs no registry: only their names and versions count here.
    """
    offered = tmp_path / "offered"
    offered.mkdir()
    for name, version in {"msgspec": "0.19.0", "numpy": "2.1.0", "pyzmq": "26.0.0", "torch": "2.13.0"}.items():
        stand_in(name, version, offered)
    other = stand_in("torch", "2.7.1", tmp_path)

    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv/bin/python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--isolated", "--disable-pip-version-check"]
    install = [*pip, "install", "--no-index", "--find-links", offered]
    run(*install, other)
    planned = json.loads(run(*install, "--dry-run", "--quiet", "--report", "-", client))["install"]
    run(*install, client)

    assert {item["metadata"]["name"] for item in planned} == {"shardfeed-client", "msgspec", "numpy", "pyzmq"}
    assert run(python, "-c", "import torch; print(torch.__version__)").strip() == "2.7.1"
    assert list((tmp_path / "venv").glob("lib/*/site-packages/shardfeed/__init__.py"))
