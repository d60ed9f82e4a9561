"""Every block of code on the pages for those who come from elsewhere runs, in the order of the page.

A block's first line says what it is: ``python`` is ours; ``python webdataset-1`` and ``python tensorcom`` are
programs of the peers; ``python same`` is ours, and prints what the peer's block before it printed; ``toml`` is a
file whose name is in its first line; ``sh`` is a command line.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.interop.environments import ROOT, run
from webdataset.writer import ShardWriter

PAGES = ROOT / "docs/migrate"
BLOCK = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
IMPORTABLE = os.pathsep.join(str(ROOT / folder) for folder in (".", "wire", "client", "server", "cli"))


def blocks(page: str) -> list[tuple[str, str]]:
    """Give the blocks of a page: what each is, and its code."""
    return BLOCK.findall((PAGES / page).read_text(encoding="utf-8"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write the data that the pages speak of: shards, and a folder of pictures."""
    random = np.random.default_rng(0)
    with ShardWriter(str(tmp_path / "train-%06d.tar"), maxcount=6) as writer:
        for number in range(24):
            image = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            writer.write({"__key__": f"{number:06d}", "png": image, "cls": number % 3})
    for number in range(24):
        path = tmp_path / f"photos/class{number % 3}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (44, 52, 3), dtype=np.uint8)).save(path)
    return tmp_path


def run_here(code: str, folder: Path, *command: str) -> str:
    """Run one of our blocks in the folder, as a program of its own."""
    paths = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": IMPORTABLE}
    done = subprocess.run(
        [*command, code],
        cwd=folder,
        env={**os.environ, **paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"
    return done.stdout


def run_block(kind: str, code: str, folder: Path) -> str:
    """Run a block that is none of a peer's; give what it printed."""
    if kind == "toml":
        name = code.partition("\n")[0].removeprefix("# ")
        (folder / name).write_text(code)
        return ""
    if kind == "sh":
        for old in folder.glob("train-*.tar"):
            old.unlink()
        return run_here(code, folder, "bash", "-ec")
    assert kind in ("python", "python same"), f"the page has a block of {kind!r}, which nothing runs"
    if "torchvision" in code:
        code = f"import tests.torchvision_ops\n{code}"
    return run_here(code, folder, sys.executable, "-c")


def test_every_page_is_run_below() -> None:
    assert {path.name for path in PAGES.glob("*.md")} == {
        "README.md",
        "imagefolder.md",
        "tensorcom.md",
        "webdataset-1.md",
    }
    assert blocks("README.md") == []


@pytest.mark.timeout(120)
@pytest.mark.parametrize("page", ["webdataset-1.md", "imagefolder.md", "tensorcom.md"])
def test_our_blocks_run(page: str, folder: Path) -> None:
    ours = [(kind, code) for kind, code in blocks(page) if kind not in ("python webdataset-1", "python tensorcom")]
    assert len(ours) >= 3
    for kind, code in ours:
        if ":7890" not in code:  # it needs the peer, and runs with it
            run_block(kind, code, folder)


@pytest.mark.peers
@pytest.mark.timeout(240)
def test_what_replaces_to_tuple_gives_the_same(peer: Path, folder: Path) -> None:
    theirs = dict(blocks("webdataset-1.md"))
    before = run(peer, "-W", "ignore", "-c", theirs["python webdataset-1"], cwd=folder)
    assert before.count("\n") == 24
    assert run_block("python same", theirs["python same"], folder) == before


@pytest.mark.peers
@pytest.mark.timeout(240)
def test_tensorcom_receives_what_the_pages_program_sends(peer: Path, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    receiver, sender = (code.replace("7890", port) for _, code in blocks("tensorcom.md")[:2])
    with subprocess.Popen(
        [peer, "-W", "ignore", "-c", receiver], cwd="/", stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            run_block("python", sender, folder)
            said, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert said == "(2, 32, 32, 3) uint8 [0, 1]\n(2, 32, 32, 3) uint8 [2, 3]\n"


@pytest.mark.peers
@pytest.mark.timeout(240)
def test_the_pages_trainer_receives_what_tensorcom_sends(peer: Path, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    sender, receiver = (code.replace("7890", port) for _, code in blocks("tensorcom.md")[2:4])
    with subprocess.Popen([peer, "-W", "ignore", "-c", sender], cwd="/") as process:
        try:
            said = run_block("python", receiver, folder)
        finally:
            process.kill()
    assert said == "".join(f"torch.Size([2, 32, 32, 3]) torch.uint8 [{number}, 5]\n" for number in (0, 1))
