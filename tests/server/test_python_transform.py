"""Transforms in Python: what they may be, that they augment alike everywhere, and what is said when they fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shardfeed_server.config import Collate, FieldConfig
from shardfeed_server.draws import Draws
from shardfeed_server.python_transform import load_transform
from shardfeed_wire.errors import ConfigError, SampleError
from tests.requirements import require
from tests.server.streams import serve

IMAGES = {"image": "bilinear", "mask": "nearest"}
Write = Callable[[str], str]

pytestmark = pytest.mark.xdist_group("python-transform")  # torch and torchvision are imported by one process


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Write:
    """Write a module into ``tmp_path`` under a name of its own, and forget it after the test."""
    name = f"augment_{abs(hash(request.node.nodeid))}"
    monkeypatch.setattr(sys, "path", list(sys.path))

    def put(source: str) -> str:
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    yield put
    sys.modules.pop(name, None)


def _sample() -> dict[str, object]:
    image = np.arange(24 * 32 * 3, dtype=np.uint8).reshape(24, 32, 3)
    return {"__key__": "k", "image": image, "mask": image[:, :, 0] // 64, "label": 3}


@pytest.mark.parametrize(
    "source",
    [
        "def f(sample, rng): return {**sample, 'label': float(rng.random())}",
        "def f(sample, rng=None): return {**sample, 'label': float(rng.random())}",
        "def f(sample, generator): return {**sample, 'label': float(generator.random())}",
        "def f(*args): return {**args[0], 'label': 0.0}",
        "def f(sample, strength=2): return {**sample, 'label': 1.0 * strength}",
        "class F:\n    def __call__(self, sample, rng): return {**sample, 'label': float(rng.random())}\nf = F()",
        "from functools import partial\ndef g(x, s, rng): return {**s, 'label': x + rng.random()}\nf = partial(g, 1.0)",
        "f = lambda sample: {**sample, 'label': 2.0}",
    ],
)
def test_functions_with_and_without_a_generator_are_called(write: Write, tmp_path: Path, source: str) -> None:
    transform = load_transform(f"{write(source)}:f", tmp_path, IMAGES)
    first = transform(_sample(), Draws(0, 0, 1))["label"]
    assert isinstance(first, float)
    assert transform(_sample(), Draws(0, 0, 1))["label"] == first


def test_the_generator_is_keyed_by_seed_epoch_and_sample_and_apart_from_the_built_in_transforms(
    write: Write, tmp_path: Path
) -> None:
    module = write("def f(sample, rng): return {**sample, 'label': int(rng.integers(2**62))}")
    transform = load_transform(f"{module}:f", tmp_path, IMAGES)
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    drawn = [transform(_sample(), Draws(*key))["label"] for key in keys]
    assert len(set(drawn)) == 4
    used = Draws(0, 0, 0)
    used.unit()
    assert transform(_sample(), used)["label"] == drawn[0]


ALL_GENERATORS = """
import random, numpy, torch
own = numpy.random.default_rng()
old = numpy.random.RandomState()
other = random.Random()
tensor = torch.Generator()
class Keeps:
    def __init__(self): self.rng = None
    def set_random_seed(self, seed): self.rng = random.Random(seed)
nested = [Keeps()]
def closed():
    inner = Keeps()
    def call(sample):
        drawn = [random.random(), numpy.random.rand(), torch.rand(1).item(), own.random(), old.rand(),
                 other.random(), torch.rand(1, generator=tensor).item(), nested[0].rng.random(), inner.rng.random()]
        return {**sample, 'label': drawn}
    return call
f = closed()
"""


def test_every_generator_that_a_function_may_draw_from_is_seeded_by_the_sample(write: Write, tmp_path: Path) -> None:
    transform = load_transform(f"{write(ALL_GENERATORS)}:f", tmp_path, IMAGES)
    first = transform(_sample(), Draws(0, 0, 1))["label"]
    second = transform(_sample(), Draws(0, 0, 2))["label"]
    assert all(one != other for one, other in zip(first, second, strict=True))
    assert transform(_sample(), Draws(0, 0, 1))["label"] == first


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def f(sample): raise KeyError('gone')", "raised KeyError: 'gone'"),
        ("def f(sample): return [sample]", "returned list, not a dict"),
        ("def f(sample): pass", "returned NoneType, not a dict"),
        ("def f(sample): del sample['mask']; return sample", "without its field 'mask'"),
    ],
)
def test_what_a_transform_does_wrong_is_said_of_the_sample(
    write: Write, tmp_path: Path, source: str, said: str
) -> None:
    module = write(source)
    with pytest.raises(SampleError) as caught:
        load_transform(f"{module}:f", tmp_path, IMAGES)(_sample(), Draws(0, 0, 0))
    assert said in caught.value.reason
    assert f"{module}:f" in caught.value.reason
    assert ("raise KeyError" in caught.value.server_traceback) == ("KeyError" in source)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_thing", ["No module named 'no_such_thing'", "code_dir", "--code-dir"]),
        ("1 / 0", ["ZeroDivisionError: division by zero"]),
        ("def g(sample): pass", ["has no 'f'"]),
        ("def forward(sample): pass\nff = 1", ["did you mean 'ff'"]),
        ("f = 3", ["cannot be called"]),
        ("class f: pass", ["cannot be called"]),
        ("def f(): pass", ["write f(sample, rng) or f(sample)"]),
        ("def f(a, b, c): pass", ["(a, b, c)"]),
        ("def f(sample, *, rng): pass", ["write f(sample, rng)"]),
    ],
)
def test_a_transform_that_cannot_be_loaded_is_refused_with_the_reason(
    write: Write, tmp_path: Path, source: str, said: list[str]
) -> None:
    module = write(source)
    with pytest.raises(ConfigError) as caught:
        load_transform(f"{module}:f", tmp_path, IMAGES)
    for part in (module, *said):
        assert part in str(caught.value)


def test_a_code_folder_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"code_dir {tmp_path}/gone is no folder"):
        load_transform("augment:f", tmp_path / "gone", IMAGES)


TORCHVISION = """
import tests.torchvision_ops
import torch
from torchvision.transforms import v2
f = v2.Compose([v2.RandomResizedCrop(16), v2.RandomHorizontalFlip(), v2.ColorJitter(0.5, 0.5)])
scaled = v2.Compose([v2.RandomCrop(8), v2.ToDtype(torch.float32, scale=True)])
def called(sample): return {**sample, 'image': v2.RandomCrop(8)(torch.from_numpy(sample['image']).permute(2, 0, 1))}
"""

ALBUMENTATIONS = """
import os
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
import albumentations as A
f = A.Compose([A.RandomCrop(16, 16), A.HorizontalFlip(p=0.5), A.RandomBrightnessContrast(p=1)])
single = A.CoarseDropout(p=1)
pipeline = A.Compose([A.RandomCrop(16, 16), A.GaussNoise(p=1)])
def called(sample):
    made = pipeline(image=sample["image"], mask=sample["mask"])
    return {**sample, **made}
"""

NUMPY = """
import random, numpy as np
def f(sample, rng):
    noise = rng.integers(0, 9, sample["image"].shape) + np.random.randint(9) + random.randrange(9)
    return {**sample, "image": (sample["image"] + noise).astype(np.uint8)}
"""

RUN = """
import hashlib, json, sys
from pathlib import Path
import numpy as np
from shardfeed_server.config import Collate, FieldConfig
from shardfeed_server.draws import Draws
from shardfeed_server.python_transform import load_transform
specs, folder, numbers = json.loads(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
made = {}
for spec in specs:
    transform = load_transform(spec, folder, {"image": "bilinear", "mask": "nearest"})
    made[spec] = {}
    for number in numbers:
        image = np.random.Generator(np.random.Philox(number)).integers(0, 255, (24, 32, 3), dtype=np.uint8)
        sample = {"__key__": "k", "image": image, "mask": image[:, :, 0] // 64, "label": 3}
        sample = transform(sample, Draws(5, 2, number))
        parts = [np.ascontiguousarray(np.asarray(sample[name])) for name in ("image", "mask")]
        made[spec][number] = [(part.shape, str(part.dtype), hashlib.blake2b(part).hexdigest()) for part in parts]
print(json.dumps(made))
"""


LIBRARIES = {
    "numpy": (NUMPY, ["f"]),
    "torchvision": (TORCHVISION, ["f", "scaled", "called"]),
    "albumentations": (ALBUMENTATIONS, ["f", "single", "called"]),
}


@pytest.fixture(scope="module")
def importable() -> Callable[[str], None]:
    """Skip a test whose library cannot be imported here; an import is tried once."""
    reasons: dict[str, str] = {}

    def check(library: str) -> None:
        if library not in reasons:
            reasons[library] = _why_not(library)
        require("python", not reasons[library], f"{library} cannot be imported: {reasons[library]}")

    return check


def _why_not(library: str) -> str:
    """Say why a library's source cannot be used here, or nothing."""
    try:
        exec(LIBRARIES[library][0], {})
    except (ImportError, OSError, RuntimeError) as error:  # torchvision's operators raise the last two
        return f"{type(error).__name__}: {error}"
    return ""


ORDERS = ([0, 1, 2, 3], [3, 1], [2, 2, 0, 9, 3, 1])
Made = dict[str, dict[str, object]]


@pytest.fixture(scope="module")
def made_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> list[Made]:
    """What the transforms of all libraries that there are made of samples in each order, each in its own process."""
    folder = tmp_path_factory.mktemp("transforms")
    specs = []
    for library, (source, names) in LIBRARIES.items():
        if not _why_not(library):
            (folder / f"augment_{library}.py").write_text(source)
            specs += [f"augment_{library}:{name}" for name in names]
    return [_made_elsewhere(folder, specs, order) for order in ORDERS]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_transform_makes_the_same_bytes_in_any_process_and_order(
    made_elsewhere: list[Made], importable: Callable[[str], None], library: str
) -> None:
    importable(library)
    for spec in (f"augment_{library}:{name}" for name in LIBRARIES[library][1]):
        reference, *others = (made[spec] for made in made_elsewhere)
        for other in others:
            shared = set(other) & set(reference)
            assert shared
            for number in shared:
                assert other[number] == reference[number], f"{spec}, sample {number}"
        assert reference["0"] != reference["1"]


def _made_elsewhere(folder: Path, specs: list[str], order: list[int]) -> Made:
    """Transform samples in a process of their own: for each spec and sample, shapes, dtypes and hashes."""
    command = [sys.executable, "-c", RUN, json.dumps(specs), str(folder), json.dumps(order)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    made: Made = json.loads(done.stdout.strip().splitlines()[-1])
    return made


def test_a_torchvision_object_gets_pictures_and_masks_and_gives_arrays_back(
    write: Write, tmp_path: Path, importable: Callable[[str], None]
) -> None:
    importable("torchvision")
    module = write(TORCHVISION)
    made = load_transform(f"{module}:f", tmp_path, IMAGES)(_sample(), Draws(0, 0, 0))
    assert (made["image"].shape, made["image"].dtype, made["mask"].shape) == ((16, 16, 3), np.uint8, (16, 16))
    assert set(np.unique(made["mask"])) <= {0, 1, 2, 3}
    assert (made["label"], made["__key__"]) == (3, "k")
    scaled = load_transform(f"{module}:scaled", tmp_path, IMAGES)(_sample(), Draws(0, 0, 0))["image"]
    assert scaled.dtype == np.float32
    assert scaled.max() <= 1


def test_a_torchvision_transform_of_the_old_kind_is_refused(
    write: Write, tmp_path: Path, importable: Callable[[str], None]
) -> None:
    importable("torchvision")
    module = write("import tests.torchvision_ops\nfrom torchvision import transforms\nf = transforms.RandomCrop(8)")
    with pytest.raises(ConfigError, match=r"torchvision\.transforms\.v2"):
        load_transform(f"{module}:f", tmp_path, IMAGES)


def test_an_albumentations_object_gets_every_picture_and_mask(
    write: Write, tmp_path: Path, importable: Callable[[str], None]
) -> None:
    importable("albumentations")
    ways = {"image": "bilinear", "second": "bilinear", "mask": "nearest", "edge_mask": "nearest"}
    sample = _sample() | {"second": _sample()["image"], "edge_mask": _sample()["mask"]}
    made = load_transform(f"{write(ALBUMENTATIONS)}:f", tmp_path, ways)(sample, Draws(0, 0, 0))
    assert made["image"].shape == (16, 16, 3)
    np.testing.assert_array_equal(made["image"], made["second"])
    np.testing.assert_array_equal(made["mask"], made["edge_mask"])
    assert made["label"] == 3


@pytest.mark.parametrize("collate", ["stack", "ragged", "pad"])
@pytest.mark.parametrize("make", ["numpy.zeros(3)", "torch.zeros(3, dtype=torch.float64)"])
def test_a_transform_that_makes_each_sample_in_one_array_of_its_own_gives_each_row_its_own_values(
    write: Write, tmp_path: Path, collate: Collate, make: str
) -> None:
    module = write(
        f"import numpy, torch\nown = {make}\n"
        "def f(sample):\n    own[:] = sample['x']\n    return {**sample, 'x': own}\n"
    )
    samples = [(str(number), {"cls": str(number).encode()}) for number in range(4)]
    fields = {"x": FieldConfig(ext="cls", collate=collate)}
    asked = serve(tmp_path, samples, fields=fields, transform=f"{module}:f", code_dir=tmp_path).ask([2, 0, 3, 1])
    assert [row.tolist() for row in asked["x"]] == [[number] * 3 for number in (2, 0, 3, 1)]
