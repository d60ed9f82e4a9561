"""A stream's answers: the right values in the right rows, and bad samples as failures of their own."""

from __future__ import annotations

import io
import json
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image as Pillow

from shardfeed_wire.errors import BadRequestError, ConfigError, SampleError, ShapeError, ShardError
from shardfeed_wire.messages import Column, Padding
from shardfeed_wire.tenbin import encode_buffer
from tests.photographs import Photographs
from tests.server.streams import encoded, serve
from webdataset.samples import tariterator

CAT = skimage.data.chelsea()
TINY = CAT[:40, :50].copy()


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_pictures_equal_those_that_tariterator_decodes(tmp_path: Path, photographs: Photographs) -> None:
    samples = [(key, {"jpg": jpeg, "cls": str(label).encode()}) for key, jpeg, label in photographs[:12]]
    served = serve(tmp_path, samples, shards=2, fields="jpg;png cls")
    locally = []
    for path in sorted((tmp_path / "shards").iterdir()):
        with path.open("rb") as file:
            locally += list(tariterator(file, decoder="rgb8"))
    numbers = [7, 0, 11, 3, 3]
    asked = served.ask(numbers, keys=True)
    assert asked.batch.request == 7
    assert asked.batch.rows == 5
    for row, number in enumerate(numbers):
        np.testing.assert_array_equal(asked["jpg"][row], locally[number]["jpg"])
    assert asked["cls"].tolist() == [locally[number]["cls"] for number in numbers]
    assert asked["cls"].dtype == np.int64
    assert served.touched == [0, 1, 2, 3, 4]
    assert served.reader is not None


def test_rows_are_named_by_hash_and_on_request_by_shard_and_key(tmp_path: Path) -> None:
    samples = [(f"k{number}", {"cls": b"1"}) for number in range(4)]
    served = serve(tmp_path, samples, shards=2, fields="cls")
    asked = served.ask([3, 0], keys=True)
    named = [("train-000001.tar", "k3"), ("train-000000.tar", "k0")]
    hashes = [blake2b(shard.encode() + b"\0" + key.encode(), digest_size=16).digest() for shard, key in named]
    assert [row.tobytes() for row in asked.tensors[0]] == hashes
    assert asked.batch.first == named[0]
    assert asked.batch.shards == ("train-000001.tar", "train-000000.tar")
    assert asked.tensors[1].tolist() == [0, 1]
    assert asked.tensors[1].dtype == np.uint32
    assert asked.tensors[2].tobytes() == b"k3k0"
    assert asked.tensors[3].tolist() == [0, 2, 4]
    assert len(served.ask([3, 0]).tensors) == 2


def test_every_kind_of_field_arrives(tmp_path: Path) -> None:
    half = np.arange(6, dtype=np.float16).reshape(2, 3)
    samples = [
        (
            f"k{number}",
            {
                "png": encoded(TINY),
                "cls": b" 7\n",
                "txt": "grüß".encode() * number,
                "json": json.dumps({"n": number}).encode(),
                "npy": _npy(half + number),
                "ten": encode_buffer([np.arange(number + 1)]),
                "flag.npy": _npy(np.array([True, False])),
                "bin": b"\0" * number,
                "big.npy": _npy(np.array([1, 2], dtype=">i4")),
            },
        )
        for number in range(3)
    ]
    fields = {
        "image": "jpg;png",
        "label": "cls",
        "text": "txt",
        "object": "json",
        "array": "npy",
        "ragged": {"ext": "ten", "collate": "ragged"},
        "flags": "flag.npy",
        "raw": "bin",
        "big": "big.npy",
    }
    from shardfeed_server.config import FieldConfig

    typed = {name: FieldConfig(**field) if isinstance(field, dict) else field for name, field in fields.items()}
    asked = serve(tmp_path, samples, fields=typed).ask([0, 1, 2])
    assert [column.name for column in asked.batch.columns] == list(fields)
    kinds = {column.name: (column.kind, column.dtype) for column in asked.batch.columns}
    assert kinds == {
        "image": ("dense", "uint8"),
        "label": ("dense", "int64"),
        "text": ("text", "uint8"),
        "object": ("json", "uint8"),
        "array": ("dense", "float16"),
        "ragged": ("ragged", "int64"),
        "flags": ("dense", "bool"),
        "raw": ("bytes", "uint8"),
        "big": ("dense", "int32"),
    }
    np.testing.assert_array_equal(asked["image"], np.stack([TINY] * 3))
    assert asked["label"].tolist() == [7, 7, 7]
    assert [text.decode() for text in asked["text"]] == ["", "grüß", "grüßgrüß"]
    assert [json.loads(text) for text in asked["object"]] == [{"n": 0}, {"n": 1}, {"n": 2}]
    np.testing.assert_array_equal(asked["array"], np.stack([half, half + 1, half + 2]))
    assert [row.tolist() for row in asked["ragged"]] == [[0], [0, 1], [0, 1, 2]]
    assert asked["flags"].tolist() == [[1, 0]] * 3
    assert asked["raw"] == [b"", b"\0", b"\0\0"]
    assert asked["big"].tolist() == [[1, 2]] * 3


@pytest.mark.parametrize(
    ("spec", "shape", "dtype"),
    [
        ("l8", (40, 50), "uint8"),
        ("rgba8", (40, 50, 4), "uint8"),
        ("rgb", (40, 50, 3), "float32"),
        ("torchrgb8", (3, 40, 50), "uint8"),
        ("torch", (3, 40, 50), "float32"),
        ("torchl", (1, 40, 50), "float32"),
        ("pil", (40, 50, 3), "uint8"),
        ("pill", (40, 50), "uint8"),
    ],
)
def test_each_imagespec_gives_what_imagehandler_gives(
    tmp_path: Path, spec: str, shape: tuple[int, ...], dtype: str
) -> None:
    from webdataset.images import imagehandler

    asked = serve(tmp_path, [("a", {"png": encoded(TINY)})], fields="png", decode=spec).ask([0, 0])
    assert asked["png"].shape == (2, *shape)
    assert asked["png"].dtype == dtype
    np.testing.assert_array_equal(asked["png"][1], np.asarray(imagehandler(encoded(TINY), spec)))


def test_pictures_resized_in_place_equal_those_resized_alone(tmp_path: Path, photographs: Photographs) -> None:
    samples = [(key, {"jpg": jpeg, "mask.png": encoded(TINY[:, :, 0])}) for key, jpeg, _ in photographs[:6]]
    served = serve(tmp_path, samples, fields={"image": "jpg", "mask": "mask.png"}, transforms=("resize=64x80", "flip"))
    together = served.ask(range(6), epoch=3)
    for number in range(6):
        alone = served.ask([number], epoch=3)
        np.testing.assert_array_equal(together["image"][number], alone["image"][0])
        np.testing.assert_array_equal(together["mask"][number], alone["mask"][0])
    again = served.ask([5, 4, 3, 2, 1, 0], epoch=3)
    np.testing.assert_array_equal(again["image"][::-1], together["image"])


def test_another_epoch_or_seed_augments_otherwise(tmp_path: Path, photographs: Photographs) -> None:
    samples = [(key, {"jpg": jpeg}) for key, jpeg, _ in photographs[:2]]
    served = serve(tmp_path, samples, fields="jpg", transforms=("random_resized_crop=32", "flip"))
    first = served.ask([0, 1])["jpg"]
    np.testing.assert_array_equal(first, served.ask([0, 1])["jpg"])
    assert (first != served.ask([0, 1], epoch=1)["jpg"]).any()
    assert (first != served.ask([0, 1], seed=1)["jpg"]).any()


def test_padded_columns_travel_ragged_and_are_cut_to_max_len(tmp_path: Path) -> None:
    from shardfeed_server.config import FieldConfig

    samples = [(f"k{size}", {"npy": _npy(np.ones((size, 2), np.float32))}) for size in (1, 3, 5)]
    field = FieldConfig(ext="npy", collate="pad", pad_value=-1, max_len=4, mask=True)
    served = serve(tmp_path, samples, fields={"boxes": field})
    asked = served.ask([0, 1, 2])
    assert [row.shape for row in asked["boxes"]] == [(1, 2), (3, 2), (4, 2)]
    assert asked.batch.columns == (
        Column(
            name="boxes", kind="ragged", dtype="float32", shape=(None, 2),
            padding=Padding(value=-1, length=4, mask="boxes_mask"), tensor=1,
        ),
    )  # fmt: skip
    assert served.describe().columns[0].shape == (None, 2)


def test_a_pad_value_that_the_field_cannot_hold_is_refused_at_the_start(tmp_path: Path) -> None:
    from shardfeed_server.config import FieldConfig

    field = FieldConfig(ext="npy", collate="pad", pad_value=-100)
    served = serve(tmp_path, [("a", {"npy": _npy(np.ones(3, np.uint8))})], fields={"ids": field})
    with pytest.raises(ConfigError, match=r"'ids': pad_value = -100 is no uint8"):
        served.describe()


def test_a_mask_of_single_numbers_is_refused_at_the_start_for_no_batch_would_have_it(tmp_path: Path) -> None:
    from shardfeed_server.config import FieldConfig

    fields = {"label": FieldConfig(ext="cls", collate="pad", mask=True)}
    served = serve(tmp_path, [("a", {"cls": b"1"})], fields=fields)
    with pytest.raises(ConfigError, match=r"'label': .* that there is no 'label_mask'; leave mask out"):
        served.describe()


def test_a_bad_sample_is_a_failure_and_its_row_zero(tmp_path: Path) -> None:
    good = {"png": encoded(TINY), "cls": b"1", "txt": b"hello"}
    samples = [
        ("broken", {**good, "png": b"no picture"}),
        ("good", good),
        ("without", {"png": encoded(TINY), "cls": b"1"}),
        ("cut", {**good, "png": encoded(TINY)[:-60]}),
        ("large", {**good, "png": encoded(CAT)}),
        ("latin", {**good, "txt": "ü".encode("latin-1")}),
        ("last", good),
    ]
    served = serve(tmp_path, samples, fields="png cls txt", max_pixels=10_000)
    asked = served.ask(range(7))
    failures = {failure.key: failure for failure in asked.batch.failures}
    assert list(failures) == ["broken", "without", "cut", "large", "latin"]
    assert {failure.shard for failure in failures.values()} == {"train-000000.tar"}
    assert [failure.field for failure in failures.values()] == ["png", "txt", "png", "png", "txt"]
    assert failures["without"].row == 2
    assert "absent" in failures["without"].reason
    assert ".png, .cls" in failures["without"].reason
    assert "max_pixels = 10000" in failures["large"].reason
    assert "UnicodeDecodeError" in failures["latin"].reason
    for row in range(7):
        is_good = row in (1, 6)
        np.testing.assert_array_equal(asked["png"][row], TINY if is_good else np.zeros_like(TINY))
        assert asked["cls"][row] == int(is_good)
        assert asked["txt"][row] == (b"hello" if is_good else b"")


def test_a_field_there_twice_is_a_failure_that_says_so(tmp_path: Path) -> None:
    import tarfile

    from shardfeed_server.config import StreamConfig
    from shardfeed_server.stream import Stream
    from tests.server.streams import Served
    from webdataset.indexing import index_shards
    from webdataset.shards import ShardReader

    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("x.cls", "y.cls", "y.cls"):
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"5"))
    manifest = index_shards([path])
    reader = ShardReader(manifest)
    asked = Served(Stream("s", StreamConfig(shards=str(path), fields="cls"), manifest, reader), reader).ask([0, 1])
    assert [(failure.key, failure.field) for failure in asked.batch.failures] == [("y", "cls")]
    assert "twice" in asked.batch.failures[0].reason
    assert asked["cls"].tolist() == [5, 0]


def test_where_all_rows_are_bad_there_are_no_columns(tmp_path: Path) -> None:
    asked = serve(tmp_path, [("a", {"cls": b"1"})], fields="jpg cls").ask([0, 0])
    assert asked.batch.columns == ()
    assert [failure.row for failure in asked.batch.failures] == [0, 1]
    assert len(asked.tensors) == 1


def test_rows_known_to_kill_a_worker_are_not_decoded_and_are_named(tmp_path: Path) -> None:
    served = serve(tmp_path, [("a", {"cls": b"1"}), ("b", {"cls": b"2"})], fields="cls")
    asked = served.ask([0, 1], bad_rows={1: "its decoder crashed (signal 11)"})
    assert served.touched == [0]
    (failure,) = asked.batch.failures
    assert (failure.row, failure.key, failure.reason) == (1, "b", "its decoder crashed (signal 11)")
    assert asked["cls"].tolist() == [1, 0]


def test_many_failures_with_long_reasons_still_make_a_small_answer(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "shouting.py").write_text("def f(sample):\n    raise ValueError('x' * 10000)\n")
    served = serve(tmp_path, [("a", {"cls": b"1"})], fields="cls", transform="shouting:f", code_dir=code)
    asked = served.ask([0] * 1000)
    failures = asked.batch.failures
    assert len(failures) == 1000
    assert all(failure.key == "a" and len(failure.reason) <= 500 for failure in failures)
    assert all(len(failure.traceback) <= 2048 for failure in failures)
    assert failures[0].traceback
    assert sum(len(failure.traceback) for failure in failures) <= 256 << 10


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({"npy": _npy(np.zeros((2, 3), np.float32))}, {"npy": _npy(np.zeros((2, 4), np.float32))}, "(2, 3)|(2, 4)"),
        ({"npy": _npy(np.zeros(2, np.float32))}, {"npy": _npy(np.zeros(2, np.float64))}, "float32|float64"),
        ({"npy": encoded(TINY)}, {"npy": encoded(CAT)}, "(40, 50, 3)|(300, 451, 3)"),
    ],
)
def test_rows_that_cannot_be_stacked_are_named_with_what_to_do(
    tmp_path: Path, one: dict[str, bytes], other: dict[str, bytes], said: str
) -> None:
    from shardfeed_server.config import FieldConfig

    decode = None if one["npy"].startswith(b"\x93NUMPY") else "rgb8"
    served = serve(tmp_path, [("a", one), ("b", other)], shards=2, fields={"x": FieldConfig(ext="npy", decode=decode)})
    with pytest.raises(ShapeError) as caught:
        served.ask([0, 1])
    for part in (
        "'x'",
        "'a' of shard train-000000.tar",
        "'b' of shard train-000001.tar",
        "resize",
        'collate = "ragged"',
    ):
        assert part in str(caught.value)
    assert all(part in str(caught.value) for part in said.split("|"))


def test_a_label_map_turns_text_into_numbers_and_names_what_it_does_not_know(tmp_path: Path) -> None:
    from shardfeed_server.config import FieldConfig

    labels = tmp_path / "labels.json"
    labels.write_text('{"cat": 3, "7": 4}')
    samples = [("a", {"cls": b"cat\n"}), ("b", {"cls": b"7"}), ("c", {"cls": b"dog"})]
    served = serve(tmp_path, samples, fields=(FieldConfig(ext="cls", label_map=str(labels)),))
    asked = served.ask([0, 1, 2])
    assert asked["cls"].tolist() == [3, 4, 0]
    assert "'dog'" in asked.batch.failures[0].reason


def test_a_shard_that_changed_is_an_error_and_never_a_failure(tmp_path: Path) -> None:
    served = serve(tmp_path, [("a", {"cls": b"1"})], fields="cls")
    path = tmp_path / "shards" / "train-000000.tar"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data.replace(b"1", b"2"))
    with pytest.raises(ShardError, match=r"train-000000\.tar"):
        served.ask([0])


def test_samples_that_do_not_exist_are_a_bad_request(tmp_path: Path) -> None:
    served = serve(tmp_path, [("a", {"cls": b"1"})], fields="cls")
    for numbers in ([1], []):
        with pytest.raises(BadRequestError):
            served.ask(np.array(numbers, dtype=np.int64))  # type: ignore[arg-type]


def test_the_description_has_what_the_first_good_samples_show(tmp_path: Path) -> None:
    samples = [
        ("bad", {"png": b"", "cls": b"0"}),
        ("a", {"png": encoded(TINY), "cls": b"1"}),
        ("b", {"png": encoded(TINY[:30]), "cls": b"1"}),
    ]
    info = serve(tmp_path, samples, shards=3, fields="png cls").describe()
    assert info.columns == (
        Column(name="png", dtype="uint8", shape=(None, 50, 3)),
        Column(name="cls", dtype="int64", shape=()),
    )
    assert (info.samples, info.blocks, info.shards, info.unnamed, info.readable) == (3, 3, 3, True, None)
    assert info.facts["field png"] == "png, rgb8, stack, bilinear"
    assert info.recipe


def test_a_recipe_that_fails_on_every_sample_is_described_by_the_first_failure(tmp_path: Path) -> None:
    served = serve(tmp_path, [("a", {"cls": b"1"}), ("b", {"cls": b"1"})], fields="jpg cls")
    with pytest.raises(
        SampleError, match=r"'a' of shard train-000000\.tar, field 'jpg': the field is absent.* The sample has: cls$"
    ) as caught:
        served.describe()
    assert (caught.value.shard, caught.value.key, caught.value.field) == ("train-000000.tar", "a", "jpg")


def test_the_times_are_measured(tmp_path: Path, photographs: Photographs) -> None:
    served = serve(tmp_path, [(key, {"jpg": jpeg}) for key, jpeg, _ in photographs[:2]], fields="jpg")
    taken = [served.ask([0, 1]).batch.seconds for _ in range(10)]
    # The least of each: what a loaded machine adds to one of them falls on any.
    reading, decoding, collating = (
        min(getattr(s, name) for s in taken) for name in ("reading", "decoding", "collating")
    )
    assert 0 < reading < decoding
    assert 0 < collating < decoding
    assert served.stream.work.seconds == taken[-1]


def test_values_of_a_transform_become_columns_by_their_type(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "kinds.py").write_text(
        "import torch, numpy as np\n"
        "def f(sample):\n"
        "    n = sample['cls']\n"
        "    return {'a.cls': n / 2, 'b.cls': n > 1, 'c.cls': torch.full((2,), n, dtype=torch.bfloat16),\n"
        "            'd.cls': [n, float('nan'), b'x', {2: (3,)}], 'e.cls': np.float32(n), 'f.cls': None, 'cls': n}\n"
    )
    names = ["a.cls", "b.cls", "c.cls", "d.cls", "e.cls", "f.cls", "cls"]
    samples = [(f"k{number}", dict.fromkeys(names, str(number).encode())) for number in (1, 2)]
    asked = serve(tmp_path, samples, fields=" ".join(names), transform="kinds:f", code_dir=code).ask([0, 1])
    assert [(column.kind, column.dtype) for column in asked.batch.columns] == [
        ("dense", "float64"), ("dense", "bool"), ("dense", "bfloat16"),
        ("json", "uint8"), ("dense", "float32"), ("json", "uint8"), ("dense", "int64"),
    ]  # fmt: skip
    assert asked["a.cls"].tolist() == [0.5, 1]
    assert asked["b.cls"].tolist() == [0, 1]
    assert torch.from_numpy(asked["c.cls"].view(np.int16).copy()).view(torch.bfloat16).tolist() == [[1, 1], [2, 2]]
    assert asked["d.cls"] == [b'[1,null,"eA==",{"2":[3]}]', b'[2,null,"eA==",{"2":[3]}]']
    assert asked["f.cls"] == [b"null", b"null"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("2**70", "64 bits"),
        ("np.zeros(2, complex)", "complex128"),
        ("object()", "neither an array nor JSON"),
        ("np.array(['a'])", "cannot be sent"),
        ("{'a': np.zeros(2)}", "neither an array nor JSON"),
        ("torch.eye(2).to_sparse()", "value of type Tensor is no array (TypeError: "),
        ("torch.ones(1, device='meta')", "value of type Tensor is no array (NotImplementedError: "),
        ("Image.open(io.BytesIO(cut))", "value of type PngImageFile is no array (OSError: image file is truncated"),
    ],
)
def test_a_value_that_no_column_holds_is_a_failure_that_says_why(tmp_path: Path, value: str, said: str) -> None:
    code = tmp_path / "code"
    code.mkdir()
    module = f"odd{abs(hash(value))}"
    (code / f"{module}.py").write_text(
        "import io, torch, numpy as np\nfrom PIL import Image\nmade = io.BytesIO()\n"
        "Image.effect_noise((64, 64), 50).save(made, 'PNG')\ncut = made.getvalue()[:-600]\n"
        f"def f(sample):\n    return {{**sample, 'cls': {value}}}\n"
    )
    asked = serve(tmp_path, [("a", {"cls": b"1"})], fields="cls", transform=f"{module}:f", code_dir=code).ask([0])
    assert said in asked.batch.failures[0].reason
    assert asked.batch.failures[0].field == "cls"


def test_text_cannot_be_padded(tmp_path: Path) -> None:
    from shardfeed_server.config import FieldConfig

    served = serve(tmp_path, [("a", {"txt": b"x"})], fields={"t": FieldConfig(ext="txt", collate="pad")})
    with pytest.raises(SampleError, match='collate = "pad" is for arrays'):
        served.describe()


def test_a_stream_with_a_bad_recipe_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'resize'"):
        serve(tmp_path, [("a", {"jpg": b""})], fields="jpg", transforms=("resise=2",))


def test_a_grown_answer_is_asked_for_again_and_is_whole(tmp_path: Path) -> None:
    samples = [("a", {"txt": b"x", "cls": b"1"}), ("b", {"txt": b"y" * 300_000, "cls": b"2"})]
    served = serve(tmp_path, samples, fields="cls txt")
    asked = served.ask([0, 1, 1])
    assert len(served.allocated) == 2
    assert asked["txt"] == [b"x", b"y" * 300_000, b"y" * 300_000]
    assert asked["cls"].tolist() == [1, 2, 2]
    served.allocated.clear()
    served.ask([0, 1, 1])
    assert len(served.allocated) == 1  # it has learnt how large they are


def test_pillow_reads_what_simplejpeg_does_not(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Pillow.fromarray(CAT).convert("CMYK").save(stream, "JPEG")
    asked = serve(tmp_path, [("a", {"jpg": stream.getvalue()})], fields="jpg").ask([0])
    assert asked["jpg"].shape == (1, *CAT.shape)
