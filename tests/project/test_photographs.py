"""The pictures that the other tests use are what they are said to be."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from tests.photographs import PICTURES, Photographs


def test_photographs_are_distinct_jpegs_of_one_size(photographs: Photographs) -> None:
    first = photographs[:44]
    assert len({jpeg for _, jpeg, _ in first}) == 44
    assert {label for _, _, label in first} == set(range(len(PICTURES)))
    for _, jpeg, _ in first:
        with Image.open(io.BytesIO(jpeg)) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (500, 375))


def test_a_photograph_is_the_same_however_it_is_asked_for(photographs: Photographs, tmp_path: Path) -> None:
    assert Photographs(tmp_path / "again", 2000)[-1985] == photographs[10:20][5]


def test_shards_hold_the_photographs_in_order(photographs: Photographs, shards: Callable[..., list[Path]]) -> None:
    paths = shards(photographs[:10], count=3)
    names = []
    for path in paths:
        with tarfile.open(path) as tar:
            names.append(tar.getnames())
    assert [path.name for path in paths] == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    assert [len(members) for members in names] == [6, 6, 8]
    assert names[0][:3] == ["000000.jpg", "000000.cls", "000001.jpg"]
    assert names[2][-1] == "000009.cls"
