"""Recipes end to end: columns of every kind, and augmentation that is the same on any server, worker and retry."""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from shardfeed import RemoteDataset
from tests.photographs import Photographs, write_shards
from tests.system.loaders import Loader, write_photographs
from webdataset import tenbin


def png(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def mixed_samples(folder: Path, count: int) -> list[Path]:
    def fields(n: int) -> dict[str, bytes]:
        stream = io.BytesIO()
        tenbin.write(stream, [np.arange(n % 5 + 1, dtype=np.float32)])
        image = np.full((20 + n % 3, 30, 3), n, np.uint8)
        return {
            "png": png(image),
            "mask.png": png((image[:, :, 0] > 7).astype(np.uint8) * 255),
            "txt": f"caption {n} äöü".encode(),
            "json": json.dumps({"n": n, "box": [n, n + 1]}).encode(),
            "ten": stream.getvalue(),
            "cls": str(n % 3).encode(),
            "kind.txt": ["cat", "dog"][n % 2].encode(),
        }

    return write_shards(folder, [(f"k{n:03d}", fields(n)) for n in range(count)], count=2)


def serve_config(folder: Path, text: str, *, workers: int = 1, wait: bool = True) -> Loader:
    config = folder / f"shardfeed-{workers}.toml"
    config.write_text(f'bind = ["tcp://127.0.0.1:0"]\nworkers = {workers}\n' + textwrap.dedent(text))
    return Loader(["--config", config], wait=wait)


def test_columns_of_every_kind_arrive_as_what_they_are(tmp_path: Path) -> None:
    mixed_samples(tmp_path, 40)
    config = """
    [streams.default]
    shards = "train-{000000..000001}.tar"
    transforms = ["resize=16x24"]
    [streams.default.fields]
    image = "jpg;png"
    float = { ext = "png", decode = "torchrgb" }
    raw = { ext = "png", decode = "l8", collate = "ragged" }
    mask = { ext = "mask.png", decode = "l8" }
    caption = "txt"
    meta = "json"
    values = { ext = "ten", collate = "ragged" }
    padded = { ext = "ten", collate = "pad", pad_value = -1, max_len = 4, mask = true }
    label = "cls"
    kind = { ext = "kind.txt", label_map = { cat = 0, dog = 1 } }
    """
    with (
        serve_config(tmp_path, config) as server,
        RemoteDataset(server.url, batch_size=40, shuffle=False, info=True) as dataset,
    ):
        (batch,) = list(dataset)
    assert batch["image"].shape == (40, 16, 24, 3)
    assert batch["image"].dtype == torch.uint8
    assert batch["float"].shape == (40, 3, 16, 24)
    assert batch["float"].dtype == torch.float32
    assert torch.allclose(batch["float"][0], batch["image"][0].permute(2, 0, 1) / 255)
    assert set(batch["mask"].unique().tolist()) == {0, 255}
    assert batch["caption"] == [f"caption {n} äöü" for n in range(40)]
    assert batch["meta"][3] == {"n": 3, "box": [3, 4]}
    assert [len(value) for value in batch["values"]] == [n % 5 + 1 for n in range(40)]
    assert batch["values"][2].tolist() == [0.0, 1.0, 2.0]
    assert batch["padded"].shape == (40, 4)
    assert batch["padded"][1].tolist() == [0.0, 1.0, -1.0, -1.0]
    assert batch["padded_mask"][1].tolist() == [True, True, False, False]
    assert batch["label"].tolist() == [n % 3 for n in range(40)]
    assert batch["kind"].tolist() == [n % 2 for n in range(40)]
    assert batch["__info__"].keys[5] == "k005"


AUGMENT = """
import random
import numpy as np

def with_rng(sample, rng):
    sample["jpg"] = np.roll(sample["jpg"], int(rng.integers(200)), axis=0)
    return sample

def with_global_generators(sample):
    import torch
    shift = random.randrange(50) + int(np.random.randint(50)) + int(torch.randint(50, ()))
    sample["jpg"] = np.roll(sample["jpg"], shift, axis=1)
    return sample
"""

TORCHVISION = """
import tests.torchvision_ops
from torchvision.transforms import v2

transform = v2.Compose([v2.RandomResizedCrop(64), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4)])
"""

ALBUMENTATIONS = """
import albumentations as A

transform = A.Compose([A.RandomResizedCrop(size=(64, 64)), A.HorizontalFlip(p=0.5), A.RandomBrightnessContrast(p=0.8)])

def by_function(sample):
    sample["jpg"] = transform(image=sample["jpg"])["image"]
    return sample
"""


STREAMS = {
    "with_rng": "augment:with_rng",
    "with_global_generators": "augment:with_global_generators",
    "torchvision": "vision:transform",
    "albumentations": "album:transform",
    "by_function": "album:by_function",
}


@pytest.fixture(scope="module")
def one_and_eight(
    photographs: Photographs, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Loader, Loader]]:
    """Two servers of all ``STREAMS``, with 1 and 8 workers."""
    folder = tmp_path_factory.mktemp("augmentation")
    write_photographs(folder, photographs[:96], count=2)
    for module, source in (("augment", AUGMENT), ("vision", TORCHVISION), ("album", ALBUMENTATIONS)):
        (folder / f"{module}.py").write_text(source)
    streams = "".join(
        f"""
        [streams.{name}]
        shards = "train-{{000000..000001}}.tar"
        fields = "jpg;png cls"
        transform = "{transform}"
        """
        for name, transform in STREAMS.items()
    )
    both = [serve_config(folder, f'code_dir = "."\n{streams}', workers=workers, wait=False) for workers in (1, 8)]
    with both[0] as one, both[1] as eight:
        one.wait_ready()
        eight.wait_ready()
        yield one, eight


def pixels(endpoints: list[str], stream: str, batch_size: int, seed: int = 3) -> dict[str, bytes]:
    with RemoteDataset(endpoints, stream=stream, batch_size=batch_size, seed=seed, info=True) as dataset:
        return {key: made for batch in dataset for key, made in by_key(batch).items()}


def by_key(batch: Any) -> dict[str, bytes]:
    images, _, info = batch
    return {key: image.numpy().tobytes() for key, image in zip(info.keys, images, strict=True)}


@pytest.mark.timeout(240)
@pytest.mark.xdist_group("augmentation")  # two servers for all
@pytest.mark.parametrize("stream", STREAMS)
def test_augmentation_is_the_same_with_1_and_8_workers_on_any_server_and_on_a_retry(
    one_and_eight: tuple[Loader, Loader], stream: str
) -> None:
    one, eight = one_and_eight
    reference = pixels([one.url], stream, 16)
    assert len(reference) == 96
    assert pixels([eight.url], stream, 32) == reference
    assert pixels([one.url, eight.url], stream, 64) == reference
    with RemoteDataset(one.url, stream=stream, batch_size=16, seed=3, info=True) as dataset:
        retried = {}
        for step, batch in enumerate(dataset):
            if step == 1:
                for worker in one.workers():
                    worker.kill()
            retried |= by_key(batch)
    assert retried == reference
    other = pixels([one.url], stream, 16, seed=4)
    assert sum(other[key] != reference[key] for key in reference) > 48


def test_built_in_augmentation_crops_image_and_mask_alike(photographs: Photographs, tmp_path: Path) -> None:
    def fields(jpeg: bytes) -> dict[str, bytes]:
        with Image.open(io.BytesIO(jpeg)) as picture:
            array = np.asarray(picture)
        return {"png": png(array), "mask.png": png((array[:, :, 1] > 127).astype(np.uint8))}

    write_shards(tmp_path, [(key, fields(jpeg)) for key, jpeg, _ in photographs[:24]], count=1)
    config = """
    [streams.default]
    shards = "train-000000.tar"
    transforms = ["random_resized_crop=64", "flip"]
    fields = { image = "png", mask = { ext = "mask.png", decode = "l8" } }
    """
    with serve_config(tmp_path, config) as server, RemoteDataset(server.url, batch_size=24) as dataset:
        (batch,) = list(dataset)
    again = (batch["image"][..., 1] > 127).to(torch.uint8)
    assert batch["mask"].unique().tolist() == [0, 1]
    assert float((again == batch["mask"]).float().mean()) > 0.93


@pytest.mark.parametrize(
    ("options", "needed"), [((), False), (("--resize", "64x64"), True)], ids=["as they are", "resized"]
)
def test_torch_is_in_the_workers_of_a_stream_that_needs_it_before_they_begin_and_nowhere_else(
    tmp_path: Path, photographs: Photographs, options: tuple[str, ...], needed: bool
) -> None:
    shards = write_photographs(tmp_path, photographs[:8], count=1)
    with Loader.of(shards, "--workers", "2", *options) as loader:
        with RemoteDataset(loader.url, batch_size=1) as dataset:
            assert len(list(dataset)) == 8
        front, workers = psutil.Process(loader.process.pid), loader.workers()
        assert len(workers) == 2
        parent = workers[0].parent()
        assert parent is not None
        assert [has_torch(process) for process in (front, parent, *workers)] == [False, needed, needed, needed]
        # What the fork server lacks, each worker imports for itself: nothing that the front alone needs.
        assert [maps(process, "/_asyncio.") for process in (front, *workers)] == [True, needed, needed]


def has_torch(process: psutil.Process) -> bool:
    return maps(process, "libtorch")


def maps(process: psutil.Process, library: str) -> bool:
    return any(library in mapped.path for mapped in process.memory_maps())
