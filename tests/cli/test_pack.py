"""`shardfeed pack`: every file once, with the right label, in an order that the seed decides."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.cli.command import run
from webdataset.manifest import Manifest


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """Two classes with 12 pictures each, some of them awkwardly named, and what is no picture beside them."""
    folder = tmp_path / "animals"
    for name in ("dog", "cat"):
        (folder / name / "deep.er").mkdir(parents=True)
        for number in range(10):
            (folder / name / f"{number}.jpg").write_bytes(b"%s %d" % (name.encode(), number))
        (folder / name / "deep.er/0.v2.JPG").write_bytes(f"{name} deep".encode())
        (folder / name / "0.png").write_bytes(f"{name} png".encode())
        (folder / name / "notes.md").write_bytes(b"no picture")
    (folder / ".git").mkdir()
    return folder


def samples(shards: Iterable[Path]) -> list[tuple[str, dict[str, bytes]]]:
    """Read shards with Python's tarfile: keys in order, with their fields."""
    found: list[tuple[str, dict[str, bytes]]] = []
    for shard in sorted(shards):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, field = member.name.rpartition(".")
                if not found or found[-1][0] != key:
                    found.append((key, {}))
                stream = tar.extractfile(member)
                assert stream is not None
                found[-1][1][field] = stream.read()
    return found


def test_a_folder_a_class_is_packed_whole_and_labelled_by_the_classes_order(animals: Path, tmp_path: Path) -> None:
    done = run("pack", animals, "-o", tmp_path / "out/a-%06d.tar", "--maxcount", "10", "--manifest", tmp_path / "m")
    assert done.returncode == 0, done.stderr
    assert "24 samples in 3 shards" in done.stdout
    assert "left out: 2 files" in done.stdout
    assert json.loads((tmp_path / "out/classes.json").read_text()) == {"cat": 0, "dog": 1}
    found = samples((tmp_path / "out").glob("*.tar"))
    assert len({key for key, _ in found}) == 24
    for _, fields in found:
        content = fields.get("jpg") or fields["png"]
        assert fields["cls"] == (b"0" if content.startswith(b"cat") else b"1")
    contents = {fields.get("jpg") or fields["png"] for _, fields in found}
    assert {b"cat deep", b"dog png", b"cat 9"} <= contents
    assert len(contents) == 24
    assert Manifest.load(tmp_path / "m").samples == 24


def test_the_seed_alone_decides_the_order_and_every_byte(animals: Path, tmp_path: Path) -> None:
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        done = run("pack", animals, "-o", tmp_path / name / "a-%06d.tar", "--seed", str(seed))
        assert done.returncode == 0, done.stderr
    first, again, other = ((tmp_path / name / "a-000000.tar").read_bytes() for name in ("first", "again", "other"))
    assert first == again
    assert first != other
    keys = [key for key, _ in samples([tmp_path / "first/a-000000.tar"])]
    assert keys != sorted(keys)


def test_a_list_gives_numbers_as_they_are_and_names_numbered(animals: Path, tmp_path: Path) -> None:
    numbered, named = tmp_path / "numbered.tsv", tmp_path / "named.tsv"
    numbered.write_text("animals/dog/1.jpg\t7\n\nanimals/cat/1.jpg\t-1\n")
    named.write_text("animals/dog/1.jpg\thot dog\nanimals/cat/1.jpg\tcat\n")
    for file, labels in ((numbered, {b"7", b"-1"}), (named, {b"0", b"1"})):
        done = run("pack", file, "-o", tmp_path / file.stem / "a-%d.tar")
        assert done.returncode == 0, done.stderr
        assert {fields["cls"] for _, fields in samples((tmp_path / file.stem).glob("*.tar"))} == labels
    assert json.loads((tmp_path / "named/classes.json").read_text()) == {"cat": 0, "hot dog": 1}
    assert not (tmp_path / "numbered/classes.json").exists()


def test_another_split_is_numbered_alike_or_refused(animals: Path, tmp_path: Path) -> None:
    only_dogs = tmp_path / "val/dog"
    only_dogs.mkdir(parents=True)
    (only_dogs / "1.jpg").write_bytes(b"dog")
    assert run("pack", animals, "-o", tmp_path / "out/train-%d.tar").returncode == 0
    refused = run("pack", only_dogs.parent, "-o", tmp_path / "out/val-%d.tar")
    assert refused.returncode == 1
    assert "--classes" in refused.stderr
    classes = tmp_path / "out/classes.json"
    done = run("pack", only_dogs.parent, "-o", tmp_path / "out/val-%d.tar", "--classes", classes)
    assert done.returncode == 0, done.stderr
    assert samples([tmp_path / "out/val-0.tar"])[0][1]["cls"] == b"1"
    assert json.loads(classes.read_text()) == {"cat": 0, "dog": 1}


@pytest.mark.parametrize(
    ("listed", "complaint"),
    [
        ("animals/cat/1.jpg 0\n", "line 1"),
        ("animals/cat/1.jpg\t0\ngone.jpg\t1\n", "line 2"),
        ("", "lists nothing"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused_with_its_line(
    animals: Path, tmp_path: Path, listed: str, complaint: str
) -> None:
    (tmp_path / "list.tsv").write_text(listed)
    done = run("pack", tmp_path / "list.tsv", "-o", tmp_path / "out/a-%d.tar")
    assert done.returncode == 1
    assert complaint in done.stderr


def test_a_folder_that_cannot_be_read_to_its_end_is_named_and_nothing_is_packed(animals: Path, tmp_path: Path) -> None:
    loop = next(animals.glob("*/deep.er")) / "loop"
    loop.symlink_to(loop.parents[1])
    done = run("pack", animals, "-o", tmp_path / "out/x-%06d.tar")
    assert done.returncode == 1
    assert f"error: {loop}: it is a link to a folder that holds it" in done.stderr
    assert not list(tmp_path.glob("out/*"))


def test_a_folder_that_the_system_does_not_list_is_named_and_nothing_is_packed(animals: Path, tmp_path: Path) -> None:
    # A mode of 0 would keep root out of nothing; a path that is too long keeps out everyone.
    deep, name = os.open(animals / "cat", os.O_RDONLY), "d" * 200
    for _ in range(25):
        os.mkdir(name, dir_fd=deep)
        deeper = os.open(name, os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = deeper
    os.close(deep)
    done = run("pack", animals, "-o", tmp_path / "out/x-%06d.tar")
    assert done.returncode == 1
    assert f"error: {animals}/cat/{name}/" in done.stderr
    assert "File name too long; correct it, pack again" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out/*"))
    shutil.rmtree(animals)


def test_a_place_where_no_manifest_can_be_is_refused_before_anything_is_packed(animals: Path, tmp_path: Path) -> None:
    done = run("pack", animals, "-o", tmp_path / "out/x-%06d.tar", "--manifest", tmp_path / "gone/x.manifest")
    assert done.returncode == 1
    assert f"--manifest {tmp_path / 'gone/x.manifest'}: there is no folder" in done.stderr
    assert not list(tmp_path.glob("out/*"))


def test_earlier_shards_and_a_pattern_without_number_are_refused(animals: Path, tmp_path: Path) -> None:
    assert "needs one number" in run("pack", animals, "-o", tmp_path / "a.tar").stderr
    (tmp_path / "a-0.tar").write_bytes(b"earlier")
    done = run("pack", animals, "-o", tmp_path / "a-%d.tar")
    assert done.returncode == 1
    assert "a-0.tar exists" in done.stderr
    assert (tmp_path / "a-0.tar").read_bytes() == b"earlier"
