"""What is written is read back equal, by us and by tarfile, and what was not finished never looks whole."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shardfeed_wire.errors import ConfigError, SampleError, ShardError
from tests.webdataset.tars import read_by_tarfile
from webdataset.indexing import index_shards
from webdataset.manifest import Manifest
from webdataset.samples import tariterator
from webdataset.writer import ShardWriter, TarWriter

RGB = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
GRAY = RGB[:, :, 0].copy()


def written(*samples: dict[str, Any], **options: Any) -> bytes:
    """Write samples to a tar in memory."""
    stream = io.BytesIO()
    with TarWriter(stream, **options) as writer:
        for sample in samples:
            writer.write(sample)
    return stream.getvalue()


def read_back(data: bytes, **options: Any) -> list[Any]:
    """Iterate a tar in memory."""
    return list(tariterator(io.BytesIO(data), **options))


def test_the_documented_example_makes_the_documented_files() -> None:
    data = written({"__key__": "a/b", "png": RGB, "output.png": GRAY})
    assert [name for name, _ in read_by_tarfile(data)] == ["a/b.output.png", "a/b.png"]
    (sample,) = read_back(data, decoder="rgb8")
    np.testing.assert_array_equal(sample["png"], RGB)
    np.testing.assert_array_equal(sample["output.png"], np.repeat(GRAY[:, :, None], 3, axis=2))


components = st.text(
    st.characters(codec="utf-8", exclude_characters="./\0", exclude_categories=["Cs"]), min_size=1, max_size=50
)
written_keys = st.lists(components, min_size=1, max_size=5).map("/".join).filter(lambda key: not key.startswith("__"))
fields = st.dictionaries(
    st.text("abcdefghij.", min_size=1, max_size=9).filter(lambda name: not name.startswith("_")),
    st.binary(max_size=2000),
    min_size=1,
    max_size=4,
)


@given(st.lists(st.tuples(written_keys, fields), max_size=5, unique_by=lambda sample: sample[0]))
def test_samples_of_any_names_and_bytes_come_back_equal(samples: list[tuple[str, dict[str, bytes]]]) -> None:
    expected = [{"__key__": key, **fields} for key, fields in samples]
    data = written(*expected)
    assert read_back(data, decoder=False) == expected
    assert read_by_tarfile(data) == [
        (f"{key}.{name}", fields[name]) for key, fields in samples for name in sorted(fields)
    ]


def test_values_of_every_kind_come_back_as_they_were() -> None:
    sample: dict[str, Any] = {
        "__key__": "k",
        "cls": 7,
        "count": np.int64(8),
        "id": torch.tensor(9),
        "txt": "grün",
        "json": {"a": [1, None]},
        "mp": {"b": [1.5, "x"]},
        "raw": b"bytes",
        "left.txt": "left",
    }
    (got,) = read_back(written(sample))
    assert got == sample


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3), np.float32(2), torch.ones(2, 3)])
def test_arrays_come_back_equal_in_each_of_their_formats(array: Any) -> None:
    (got,) = read_back(
        written({"__key__": "k", "ten": [array, array], "tb": array, "npy": array, "npz": {"file": array}})
    )
    expected = np.asarray(array)
    for value in (*got["ten"], *got["tb"], got["npy"], got["npz"]["file"]):
        assert value.dtype == expected.dtype
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        ("rgb8", RGB),
        ("rgb", RGB.astype("f4") / 255),
        ("l8", GRAY),
        ("l8", GRAY[:, :, None]),
        ("torchrgb8", torch.from_numpy(RGB.transpose(2, 0, 1).copy())),
        ("torchl", torch.from_numpy(GRAY[None].astype("f4") / 255)),
        ("rgba8", np.dstack([RGB, GRAY])),
        ("pil", Image.fromarray(RGB)),
    ],
)
def test_images_of_each_specification_come_back_equal(spec: str, value: Any) -> None:
    (got,) = read_back(written({"__key__": "k", "png": value}), decoder=spec)
    expected = GRAY if spec == "l8" else value
    np.testing.assert_array_equal(np.asarray(got["png"]), np.asarray(expected))


@pytest.mark.parametrize(("extension", "start"), [("jpg", b"\xff\xd8"), ("pbm", b"P4"), ("pgm", b"P5"), ("ppm", b"P6")])
def test_images_are_written_in_the_format_of_their_extension(extension: str, start: bytes) -> None:
    assert read_by_tarfile(written({"__key__": "k", extension: RGB}))[0][1].startswith(start)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("png", np.array([[0.0, 1.2]]), "must lie in 0..1"),
        ("png", np.array([[np.nan, 1.0]]), "must lie in 0..1"),
        ("png", np.zeros((3, 4), "i4"), "not int32"),
        ("png", np.zeros((3, 4, 2), "u1"), "neither gray, RGB nor RGBA"),
        ("jpg", np.zeros((3, 4, 4), "u1"), "RGBA"),
        ("cls", 1.5, "float"),
        ("cls", None, "NoneType"),
        ("txt", 5, "int"),
        ("json", {1, 2}, "set"),
        ("ten", [np.array(["x"])], "dtype"),
        ("npy", np.array([{}]), "allow_pickle"),
        ("npz", {"a": np.array([{}])}, "allow_pickle"),
        ("what", 5, "no encoder for this extension"),
    ],
)
def test_a_value_no_encoder_takes_names_key_field_and_reason(field: str, value: Any, reason: str) -> None:
    with pytest.raises(SampleError, match=f"sample k, field {field}: .*{reason}") as caught:
        written({"__key__": "k", field: value})
    assert (caught.value.key, caught.value.field) == ("k", field)


def test_pickled_fields_are_written_and_read_where_allowed() -> None:
    data = written({"__key__": "k", "pyd": {1: 2}, "pth": torch.ones(1)})
    (got,) = read_back(data, allow_pickle=True)
    assert got["pyd"] == {1: 2}
    assert torch.equal(got["pth"], torch.ones(1))


def test_a_sample_without_key_names_its_fields() -> None:
    with pytest.raises(ValueError, match=r"fields \['cls'\] has no __key__"):
        written({"cls": 1})


@pytest.mark.parametrize(
    "sample", [{"__key__": "a.b", "x": b""}, {"__key__": "a", "x/y": b""}, {"__key__": "", "x": b""}]
)
def test_names_that_would_be_read_back_otherwise_are_refused(sample: dict[str, Any]) -> None:
    with pytest.raises(SampleError, match="would not be read back"):
        written(sample)


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        ({"jpg": b"1", "JPG": b"2"}, "field jpg: another field is named so but for case"),
        ({"txt": "half \ud800"}, "field txt: its text is none that UTF-8 can hold"),
        ({"x\ud800": b"1"}, "no name that a tar can hold"),
        ({5: b"1"}, "the field's name is int"),
    ],
)
@pytest.mark.parametrize("encoder", [True, False])
def test_what_no_reader_would_take_is_refused_by_sample_and_field(
    sample: dict[Any, Any], reason: str, encoder: bool
) -> None:
    with pytest.raises(SampleError, match=f"sample k, .*{reason}"):
        written({"__key__": "k", **sample}, encoder=encoder)


def test_views_of_any_layout_are_written_and_an_encoder_has_a_sample_of_its_own() -> None:
    sample = {"__key__": "k", "x": memoryview(b"abcd")[::2]}
    assert read_back(written(sample), decoder=False) == [{"__key__": "k", "x": b"ac"}]
    popping = written(sample, encoder=lambda sample: {"x": sample.pop("__key__").encode()})
    assert read_back(popping, decoder=False) == [{"__key__": "k", "x": b"k"}]
    assert set(sample) == {"__key__", "x"}


def test_two_samples_in_a_row_with_one_key_and_samples_without_fields_are_refused() -> None:
    with pytest.raises(SampleError, match="same key"):
        written({"__key__": "a", "x": b"1"}, {"__key__": "a", "y": b"2"})
    with pytest.raises(SampleError, match="no fields"):
        written({"__key__": "a", "_x": b"1"})


def test_an_error_in_one_sample_leaves_the_others_readable() -> None:
    stream = io.BytesIO()
    with TarWriter(stream) as writer:
        writer.write({"__key__": "a", "cls": 1})
        with pytest.raises(SampleError):
            writer.write({"__key__": "b", "a.cls": 2, "cls": object()})
        writer.write({"__key__": "c", "cls": 3})
    assert [sample["__key__"] for sample in read_back(stream.getvalue())] == ["a", "c"]


def test_dwrite_takes_fields_as_keywords_with_dots_for_underscores() -> None:
    stream = io.BytesIO()
    with TarWriter(stream) as writer:
        assert writer.dwrite("k", seg_txt="abc", cls=12) == 5
    assert read_back(stream.getvalue()) == [{"__key__": "k", "seg.txt": "abc", "cls": 12}]


def test_the_size_returned_is_that_of_the_fields() -> None:
    with TarWriter(io.BytesIO()) as writer:
        assert writer.write({"__key__": "k", "a": b"123", "b": "ü", "_c": b"not written"}) == 5


def test_owner_mode_and_time_are_written_as_given() -> None:
    data = written({"__key__": "k", "x": b"1"}, user="me", group="us", mode=0o640, mtime=12345.9)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        info = archive.getmembers()[0]
    assert (info.uname, info.gname, info.mode, info.mtime) == ("me", "us", 0o640, 12345)
    with tarfile.open(fileobj=io.BytesIO(written({"__key__": "k", "x": b"1"}))) as archive:
        info = archive.getmembers()[0]
    assert (info.uname, info.gname, info.mode) == ("bigdata", "bigdata", 0o444)


def test_equal_samples_make_equal_bytes_with_a_time_given() -> None:
    sample = {"__key__": "k", "png": RGB, "npz": {"a": RGB}, "json": {"a": 1}}
    for compress in (False, True):
        assert written(sample, mtime=0, compress=compress) == written(sample, mtime=0, compress=compress)


def test_meta_entries_are_kept_where_asked() -> None:
    sample = {"__key__": "k", "x": b"1", "_url": "http://x"}
    assert read_by_tarfile(written(sample)) == [("k.x", b"1")]
    assert read_by_tarfile(written(sample, keep_meta=True)) == [("k._url", b"http://x"), ("k.x", b"1")]


def test_the_encoder_is_none_a_dict_or_a_function() -> None:
    sample = {"__key__": "k", "n": 5}
    with pytest.raises(SampleError, match="field n: its value is int, not bytes"):
        written(sample, encoder=False)
    assert read_by_tarfile(written(sample, encoder={"n": lambda n: b"x" * n})) == [("k.n", b"xxxxx")]
    assert read_by_tarfile(written(sample, encoder=lambda s: {**s, "n": b"!"})) == [("k.n", b"!")]
    with pytest.raises(ConfigError, match="encoder 7"):
        TarWriter(io.BytesIO(), encoder=7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "compress", "packed"),
    [
        ("a.tar", None, False),
        ("a.tgz", None, True),
        ("a.tar.gz", None, True),
        ("a.tar", True, True),
        ("a.tgz", False, False),
    ],
)
def test_gzip_goes_by_name_or_as_told(tmp_path: Path, name: str, compress: bool | None, packed: bool) -> None:
    with TarWriter(tmp_path / name, compress=compress) as writer:
        writer.write({"__key__": "k", "cls": 1})
    data = (tmp_path / name).read_bytes()
    assert data.startswith(b"\x1f\x8b") == packed
    assert read_back(data) == [{"__key__": "k", "cls": 1}]
    assert read_by_tarfile(gzip.decompress(data) if packed else data) == [("k.cls", b"1")]


def test_a_stream_or_descriptor_stays_open(tmp_path: Path) -> None:
    with (tmp_path / "a.tar").open("wb") as stream:
        with TarWriter(stream.fileno()) as writer:
            writer.write({"__key__": "k", "cls": 1})
        os.fstat(stream.fileno())
    assert read_back((tmp_path / "a.tar").read_bytes()) == [{"__key__": "k", "cls": 1}]


def test_a_command_gets_the_tar_and_is_waited_for(tmp_path: Path) -> None:
    with TarWriter(f"pipe:sleep 0.2; cat > {tmp_path}/a.tar") as writer:
        writer.write({"__key__": "a", "txt": "hello"})
    (sample,) = read_back((tmp_path / "a.tar").read_bytes())
    assert sample == {"__key__": "a", "txt": "hello"}
    with ShardWriter(f"pipe:cat > {tmp_path}/%d.tar", maxcount=1) as shards:
        for key in "ab":
            shards.write({"__key__": key, "cls": 1})
    assert [read_back((tmp_path / f"{number}.tar").read_bytes())[0]["__key__"] for number in range(2)] == ["a", "b"]


def test_a_command_that_fails_is_an_error_with_its_status(tmp_path: Path) -> None:
    writer = TarWriter("pipe:cat > /dev/null; exit 3")
    writer.write({"__key__": "a", "txt": "hello"})
    with pytest.raises(OSError, match=r"pipe:cat .* exit status 3"):
        writer.close()


def test_an_exception_stops_the_command_before_it_takes_the_tar_for_whole(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), TarWriter(f"pipe:cat > {tmp_path}/part; touch {tmp_path}/done") as writer:
        writer.write({"__key__": "a", "txt": "hello"})
        raise ZeroDivisionError
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize(
    ("pattern", "manifest", "options", "said"),
    [
        ("pipe:cat > %d.tar", "x.manifest", {}, "a command keeps them"),
        ("%d.tar.gz", "x.manifest", {}, "gzip's cannot"),
        ("%d.tar", "x.manifest", {"compress": True}, "gzip's cannot"),
        ("%d.tar", "nowhere/x.manifest", {}, "no folder to write it to"),
    ],
)
def test_a_manifest_that_cannot_be_made_is_refused_before_anything_is_written(
    pattern: str, manifest: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=f"manifest.*{said}"):
        ShardWriter(pattern, manifest=manifest, **options)


def test_a_named_file_appears_when_it_is_closed_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    writer = TarWriter(str(path))
    writer.write({"__key__": "k", "cls": 1})
    assert not path.exists()
    writer.close()
    writer.close()
    assert [found.name for found in tmp_path.iterdir()] == ["a.tar"]
    with pytest.raises(ValueError, match="closed"):
        writer.write({"__key__": "l", "cls": 1})


def test_a_named_pipe_and_a_link_stay_what_they_are_and_get_the_tar(tmp_path: Path) -> None:
    pipe, link, linked = tmp_path / "pipe", tmp_path / "link.tar", tmp_path / "elsewhere" / "linked.tar"
    linked.parent.mkdir()
    link.symlink_to(linked)
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as reader:
        piped = reader.submit(pipe.read_bytes)
        for name in (pipe, link):
            with TarWriter(name, mtime=0) as writer:
                writer.write({"__key__": "k", "txt": "text"})
        assert piped.result(30) == linked.read_bytes()
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert sorted(tmp_path.rglob("*")) == sorted([pipe, link, linked.parent, linked])


def test_a_folder_that_is_missing_is_said_of_the_name_given(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        TarWriter(tmp_path / "gone" / "x.tar")
    assert caught.value.filename == str(tmp_path / "gone" / "x.tar")


def test_an_exception_leaves_no_file_and_an_old_one_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), TarWriter(path) as writer:
        writer.write({"__key__": "k", "cls": 1})
        raise KeyError
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("a.tar", b"old")]


def test_an_exception_leaves_a_stream_that_readers_call_truncated() -> None:
    stream = io.BytesIO()
    with pytest.raises(KeyError), TarWriter(stream) as writer:
        writer.write({"__key__": "k", "cls": 1})
        raise KeyError
    with pytest.raises(ShardError, match="truncated"):
        read_back(stream.getvalue())


class FullDisk(io.RawIOBase):
    """A stream on which nothing more fits."""

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        raise OSError(28, "No space left on device")


def test_a_write_that_failed_ends_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = TarWriter(tmp_path / "a.tar")
    full = FullDisk()
    with monkeypatch.context() as patch:
        patch.setattr(writer, "_stream", full)
        with pytest.raises(OSError, match="No space"):
            writer.write({"__key__": "k", "cls": 1})
        with pytest.raises(ValueError, match="earlier write to it failed"):
            writer.write({"__key__": "l", "cls": 1})
        writer.close()
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------- many shards


def numbered(count: int, size: int = 100) -> list[dict[str, Any]]:
    """Give samples with one field of ``size`` bytes."""
    return [{"__key__": f"{number:04d}", "x": bytes([number]) * size} for number in range(count)]


def write_shards(samples: list[dict[str, Any]], pattern: Path, **options: Any) -> list[int]:
    """Write samples to shards, and count those in each by reading."""
    with ShardWriter(str(pattern), **options) as writer:
        for sample in samples:
            writer.write(sample)
    found = [read_back(path.read_bytes(), decoder=False) for path in sorted(pattern.parent.glob("*.tar"))]
    assert [sample for shard in found for sample in shard] == samples
    return [len(shard) for shard in found]


def test_shards_hold_at_most_maxcount_samples(tmp_path: Path) -> None:
    assert write_shards(numbered(10), tmp_path / "s-%03d.tar", maxcount=4) == [4, 4, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s-000.tar", "s-001.tar", "s-002.tar"]


@given(maxsize=st.integers(2048, 9000), size=st.integers(0, 1500))
def test_shards_are_at_most_maxsize_bytes(tmp_path_factory: pytest.TempPathFactory, maxsize: int, size: int) -> None:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(numbered(7, size), folder / "s-%d.tar", maxsize=maxsize)
    for path in folder.iterdir():
        assert path.stat().st_size <= maxsize or len(read_by_tarfile(path.read_bytes())) == 1


def test_post_is_called_with_each_finished_shard(tmp_path: Path) -> None:
    sizes: list[tuple[str, int]] = []
    post: Callable[[str], object] = lambda name: sizes.append((Path(name).name, Path(name).stat().st_size))  # noqa: E731
    write_shards(numbered(5), tmp_path / "s-%d.tar", maxcount=2, post=post)
    assert sizes == [("s-0.tar", 3072), ("s-1.tar", 3072), ("s-2.tar", 2048)]


def test_shards_can_be_ended_by_hand_and_options_go_to_each(tmp_path: Path) -> None:
    with ShardWriter(str(tmp_path / "s-%d.tar"), encoder=False, mtime=5) as writer:
        writer.write({"__key__": "a", "x": b"1"})
        writer.next_stream()
        writer.write({"__key__": "b", "x": b"1"})
        writer.finish()
        writer.write({"__key__": "c", "x": b"1"})
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["s-0.tar", "s-1.tar", "s-2.tar"]
    with tarfile.open(tmp_path / "s-1.tar") as archive:
        assert archive.getmembers()[0].mtime == 5


def test_a_manifest_is_written_as_indexing_would_make_it(tmp_path: Path) -> None:
    write_shards(numbered(10), tmp_path / "s-%d.tar", maxcount=4, manifest=tmp_path / "m.ten", block_bytes=2000)
    made = index_shards(sorted(tmp_path.glob("*.tar")), block_bytes=2000)
    loaded = Manifest.load(tmp_path / "m.ten")
    assert loaded.fingerprint == made.fingerprint
    assert loaded.samples == 10


def test_an_exception_leaves_the_finished_shards_only(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyError),
        ShardWriter(str(tmp_path / "s-%d.tar"), maxcount=2, manifest=tmp_path / "m") as writer,
    ):
        for sample in numbered(5):
            writer.write(sample)
        raise KeyError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s-0.tar", "s-1.tar"]


def test_without_samples_nothing_is_written(tmp_path: Path) -> None:
    ShardWriter(str(tmp_path / "s-%d.tar"), manifest=tmp_path / "m").close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pattern", ["train.tar", "train-%d-%d.tar", "train-%q.tar"])
def test_a_pattern_without_one_number_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match="number"):
        ShardWriter(pattern)
