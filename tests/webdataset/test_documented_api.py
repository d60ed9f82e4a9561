"""The page that documents the API of 2020, sentence by sentence: names, signatures, and what other tests leave out.

What each parameter does is tested with its module; here is that code written against the page finds it.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset

import webdataset
from shardfeed_wire.errors import ConfigError, ShardError
from tests.webdataset.tars import numbered_files, tar_bytes, write_tar
from webdataset import dataset, tenbin, writer
from webdataset.encode import default_encoders
from webdataset.keys import base_plus_ext

SIGNATURES = """
def WebDataset(urls, *, extensions=None, decoder='rgb', transforms=None, pipeline=None, keys=base_plus_ext,
    opener=reader, errors=True, verbose=False, shuffle=0, associate=None, prepare_for_worker=True, container=None): ...
def shard_selection(self): ...
def imagehandler(data, imagespec): ...
def tariterator(fileobj, keys=base_plus_ext, decoder=True, suffixes=None, errors=True, container=None): ...
def ShardWriter(pattern, maxcount=100000, maxsize=3000000000.0, post=None, **kw): ...
def finish(self): ...
def next_stream(self): ...
def TarWriter(fileobj, user='bigdata', group='bigdata', mode=292, compress=None, encoder=True, keep_meta=False): ...
def dwrite(self, key, **kw): ...
def close(self): ...
def write_sample(self, obj): ...
def load(fname, infos=False, nocheck=False): ...
def read(stream, n=999999, infos=False): ...
def save(fname, *args, infos=None, nocheck=False): ...
def sctp_recv(socket, infos=False, maxsize=100000000): ...
def sctp_send(socket, dest, l, infos=None): ...
def write(stream, l, infos=None): ...
def zrecv_multipart(socket, infos=False): ...
def zrecv_single(socket, infos=False): ...
def zsend_multipart(socket, l, infos=None): ...
def zsend_single(socket, l, infos=None): ...
"""

OURS = {
    "WebDataset": [dataset.WebDataset],
    "shard_selection": [dataset.WebDataset.shard_selection],
    "imagehandler": [dataset.imagehandler],
    "tariterator": [dataset.tariterator],
    "ShardWriter": [writer.ShardWriter],
    "finish": [writer.ShardWriter.finish],
    "next_stream": [writer.ShardWriter.next_stream],
    "TarWriter": [writer.TarWriter],
    "dwrite": [writer.TarWriter.dwrite],
    "close": [writer.TarWriter.close, writer.ShardWriter.close],
    "write_sample": [writer.TarWriter.write, writer.ShardWriter.write],
    **{name: [getattr(tenbin, name)] for name in ["load", "read", "save", "sctp_recv", "sctp_send", "write"]},
    **{f"zsend_{framing}": [getattr(tenbin, f"zsend_{framing}")] for framing in ("single", "multipart")},
    **{f"zrecv_{framing}": [getattr(tenbin, f"zrecv_{framing}")] for framing in ("single", "multipart")},
}
# What ours has beside the page: always by keyword, always with a default that changes nothing.
ADDED = {"allow_pickle", "block_bytes", "manifest", "mtime"}

Documented = list[tuple[str, int, Any]]


def documented() -> dict[str, Documented]:
    """Parse the page's signatures into (name, kind, default) of each parameter."""
    kinds = inspect.Parameter
    functions = {}
    for function in ast.parse(SIGNATURES).body:
        assert isinstance(function, ast.FunctionDef)
        arguments = function.args
        defaults = [None] * (len(arguments.args) - len(arguments.defaults)) + [*arguments.defaults]
        found: Documented = []
        for argument, default in zip(arguments.args, defaults, strict=True):
            found.append((argument.arg, kinds.POSITIONAL_OR_KEYWORD, value_of(default)))
        if arguments.vararg:
            found.append((arguments.vararg.arg, kinds.VAR_POSITIONAL, kinds.empty))
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
            found.append((argument.arg, kinds.KEYWORD_ONLY, value_of(default)))
        if arguments.kwarg:
            found.append((arguments.kwarg.arg, kinds.VAR_KEYWORD, kinds.empty))
        functions[function.name] = found
    return functions


def value_of(default: ast.expr | None) -> Any:
    """Evaluate a default; the two functions among them are the module's."""
    if default is None:
        return inspect.Parameter.empty
    if isinstance(default, ast.Name):
        return getattr(dataset, default.id)
    return ast.literal_eval(default)


@pytest.mark.parametrize("name", documented())
def test_signatures_are_the_pages_down_to_the_defaults(name: str) -> None:
    for ours in OURS[name]:
        parameters = inspect.signature(ours).parameters.values()
        added = {parameter.name for parameter in parameters} & ADDED
        assert all(
            parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
            for parameter in parameters
            if parameter.name in added
        )
        kept = [(one.name, one.kind, one.default) for one in parameters if one.name not in added]
        assert kept == documented()[name]


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("dataset", "WebDataset tariterator default_handlers imagehandler"),
        ("writer", "TarWriter ShardWriter"),
        (
            "tenbin",
            "read write save load zsend_single zrecv_single zsend_multipart zrecv_multipart sctp_send sctp_recv "
            # Its text says to call these where the others do not suffice.
            "encode_buffer decode_buffer encode_list decode_list",
        ),
    ],
)
def test_all_names_are_the_pages(module: str, names: str) -> None:
    assert set(importlib.import_module(f"webdataset.{module}").__all__) == set(names.split())
    found: dict[str, Any] = {}
    exec(f"from webdataset.{module} import *", found)
    assert set(names.split()) == set(found) - {"__builtins__"}


def test_the_classes_are_what_the_page_says() -> None:
    assert issubclass(dataset.WebDataset, IterableDataset)
    assert dataset.WebDataset.__mro__[1] is IterableDataset
    for cls in (writer.TarWriter, writer.ShardWriter):
        assert callable(cls.__enter__)
        assert callable(cls.__exit__)


def test_every_documented_name_has_a_docstring_with_the_pages_parameters() -> None:
    for name, functions in OURS.items():
        for function in functions:
            text = inspect.getdoc(function) or ""
            if inspect.isclass(function):
                text += inspect.getdoc(function.__init__) or ""
            assert text, name
            for parameter, _, _ in documented()[name]:
                if parameter not in ("self", "obj", "key", "kw", "socket", "stream", "args"):
                    assert parameter in text, f"{name} does not say what {parameter} is"


def test_the_package_offers_the_documented_names_itself() -> None:
    assert webdataset.WebDataset is dataset.WebDataset
    assert webdataset.tariterator is dataset.tariterator
    assert webdataset.default_handlers is dataset.default_handlers
    assert webdataset.imagehandler is dataset.imagehandler
    assert webdataset.TarWriter is writer.TarWriter
    assert webdataset.ShardWriter is writer.ShardWriter
    assert webdataset.tenbin is tenbin
    assert dataset.base_plus_ext is base_plus_ext
    assert dataset.reader is webdataset.reader


# --------------------------------------------------------------------------------------- WebDataset


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    """Give two shards of two samples with a class each."""
    return [
        write_tar(tmp_path / f"{part}.tar", [(f"{part}{number}.cls", str(number).encode()) for number in range(2)])
        for part in "ab"
    ]


def test_datasets_can_be_added_and_not_indexed(shards: list[str]) -> None:
    one, other = (dataset.WebDataset([shard], extensions="cls") for shard in shards)
    assert list(one + other) == [(0,), (1,), (0,), (1,)]
    with pytest.raises(NotImplementedError):
        one[0]


def test_a_dataset_can_be_iterated_again(shards: list[str]) -> None:
    both = dataset.WebDataset(shards, extensions="cls")
    assert list(both) == list(both)


def test_extra_meta_adds_the_subset_to_each_sample(shards: list[str]) -> None:
    dicts = dataset.WebDataset(shards)
    assert "__webdataset__" not in next(iter(dicts))
    dicts.extra_meta = True
    dicts.subset = (1, 2)
    assert [sample["__webdataset__"] for sample in dicts] == [((1, 2),)] * 2
    tuples = dataset.WebDataset(shards, extensions="cls")
    tuples.extra_meta = True
    assert list(tuples) == [(0,), (1,)] * 2


@pytest.mark.parametrize("name", ["extra_meta", "check_sorted", "decode"])
def test_parameters_that_the_page_describes_but_no_signature_has_are_refused_as_ever(name: str) -> None:
    for function in (dataset.WebDataset, dataset.tariterator):
        with pytest.raises(TypeError, match=name):
            function("x.tar", **{name: True})


def test_the_decoder_true_is_the_default_one(shards: list[str]) -> None:
    assert [sample["cls"] for sample in dataset.WebDataset(shards, decoder=True)] == [0, 1, 0, 1]


def test_an_opener_may_return_any_stream(shards: list[str]) -> None:
    opened = dataset.WebDataset(["one"], opener=lambda url: io.BytesIO(tar_bytes([("k.txt", url.encode())])))
    assert [sample["txt"] for sample in opened] == ["one"]


class Breaks(io.RawIOBase):
    """A stream of somebody else's that breaks after some bytes, with an exception of its own."""

    def __init__(self, error: Exception, start: bytes = b"") -> None:
        super().__init__()
        self.error, self.start = error, start

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.start:
            raise self.error
        part, self.start = self.start[: len(buffer)], self.start[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


class Theirs(Exception):
    """What some client of some store raises."""


@pytest.mark.parametrize("error", [ConnectionResetError("connection reset"), Theirs("no such bucket")])
@pytest.mark.parametrize("where", ["opening", "reading"])
def test_an_openers_own_exceptions_are_answered_as_errors_says(shards: list[str], error: Exception, where: str) -> None:
    whole = tar_bytes(numbered_files(range(2)))

    def opener(url: str) -> Any:
        if url != "bad":
            return Path(url).open("rb")
        if where == "opening":
            raise error
        return Breaks(error, whole[:3200])

    urls = [shards[0], "bad", shards[1]]
    # 3,200 bytes are the first sample of the bad shard, and some of its second.
    count = 4 if where == "opening" else 5
    assert len(list(dataset.WebDataset(urls, opener=opener, errors=False))) == count
    with pytest.warns(UserWarning, match=f"left out: shard bad: it cannot be read: {error}"):
        assert len(list(dataset.WebDataset(urls, opener=opener, errors="warn"))) == count
    with pytest.raises(ShardError if isinstance(error, OSError) else Theirs, match=str(error)):
        list(dataset.WebDataset(urls, opener=opener))


def test_an_answer_to_errors_that_there_is_not_leaves_nothing_out(shards: list[str]) -> None:
    Path(shards[0]).write_bytes(b"broken")
    wrong: Any
    for wrong in ("raise", "ignore", None, 2):
        with pytest.raises(ConfigError, match=r"errors .*: give True, 'warn' or False"):
            dataset.WebDataset(shards, errors=wrong)
        with pytest.raises(ConfigError, match="errors"):
            dataset.tariterator(io.BytesIO(), errors=wrong)
    with pytest.raises(ShardError):
        list(dataset.WebDataset(shards, errors=1))  # type: ignore[arg-type]  # it is True


def test_shards_may_be_paths_and_one_function_transforms_every_field(shards: list[str]) -> None:
    for given in (Path(shards[0]), [Path(shards[0])]):
        read = dataset.WebDataset(given, extensions="cls cls", transforms=str)
        assert list(read) == [("0", "0"), ("1", "1")]


@pytest.mark.parametrize("errors", [True, False, "warn"])
def test_what_is_wrong_with_the_configuration_is_never_left_out(shards: list[str], errors: Any) -> None:
    def unusable(data: bytes) -> None:
        raise ConfigError("needs a package that is not installed")

    for wrong in (
        dataset.WebDataset(shards, errors=errors, decoder={"cls": unusable}),
        dataset.WebDataset(["gopher://x"], errors=errors),
    ):
        with pytest.raises(ConfigError):
            list(wrong)


def test_containers_of_every_kind_hold_whole_samples(tmp_path: Path) -> None:
    stored = {"__key__": "a", "x": [1, 2]}
    for container, data in {
        "json": json.dumps(stored).encode(),
        "mp": default_encoders["mp"](stored),
        "pyd": default_encoders["pyd"](stored),
    }.items():
        url = write_tar(tmp_path / f"{container}.tar", [("a.x", data), ("b.x", data)])
        assert list(dataset.WebDataset([url], container=container, allow_pickle=True)) == [stored, stored]
        assert list(
            dataset.WebDataset([url], container=container, allow_pickle=True, extensions="x", transforms=[sum])
        ) == [(3,), (3,)]
    url = write_tar(tmp_path / "ten.tar", [("a.ten", tenbin.encode_buffer([np.arange(3), np.ones(2)]))])
    for sample in dataset.WebDataset([url], container="ten", transforms=[np.sum]):
        assert sample == (3, 2)


def test_a_pipeline_may_batch(shards: list[str]) -> None:
    def batched(samples: Any) -> Any:
        yield torch.tensor([label for (label,) in samples])

    (batch,) = dataset.WebDataset(shards, extensions="cls", pipeline=batched)
    assert batch.tolist() == [0, 1, 0, 1]


# -------------------------------------------------------------------------------- decoders, encoders


def test_a_handler_of_ones_own_is_used_for_each_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    for spec, handlers in dataset.default_handlers.items():
        monkeypatch.setitem(handlers, "mp4", lambda data, spec=spec: (spec, data))
        (sample,) = dataset.tariterator(io.BytesIO(tar_bytes([("k.mp4", b"film")])), decoder=spec)
        assert sample["mp4"] == (spec, b"film")


def test_each_documented_extension_has_a_handler_and_an_encoder_that_mirrors_it() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    values: dict[str, Any] = {
        **dict.fromkeys(["cls", "cls2", "class", "count", "index", "inx", "id"], 12),
        **dict.fromkeys(["txt", "text", "transcript"], "grün"),
        **dict.fromkeys(["png", "img", "image", "ppm"], image),
        **{key: {"a": [1, None]} for key in ["json", "jsn", "mp", "msgpack", "msg"]},
        **{key: [image] for key in ["ten", "tb"]},
        "npy": image,
        "npz": {"a": image},
    }
    lossy = {"jpg", "jpeg", "pbm", "pgm"}
    handlers = dataset.default_handlers["rgb8"]
    assert set(values) | lossy == set(handlers)
    assert set(handlers) | {"pyd", "pickle", "pth"} == set(default_encoders)
    stream = io.BytesIO()
    with writer.TarWriter(stream) as tar:
        tar.write({"__key__": "k", **values})
    stream.seek(0)
    (sample,) = dataset.tariterator(stream, decoder="rgb8")
    for extension, value in values.items():
        np.testing.assert_equal(sample[extension], value)
    for extension in lossy:
        assert handlers[extension](default_encoders[extension](image)).shape == (4, 6, 3)


@pytest.mark.parametrize(
    ("spec", "kind", "shape", "dtype"),
    [
        ("l8", np.ndarray, (4, 6), "uint8"),
        ("rgb8", np.ndarray, (4, 6, 3), "uint8"),
        ("rgba8", np.ndarray, (4, 6, 4), "uint8"),
        ("l", np.ndarray, (4, 6), "float32"),
        ("rgb", np.ndarray, (4, 6, 3), "float32"),
        ("rgba", np.ndarray, (4, 6, 4), "float32"),
        ("torchl8", torch.Tensor, (1, 4, 6), "torch.uint8"),
        ("torchrgb8", torch.Tensor, (3, 4, 6), "torch.uint8"),
        ("torchrgba8", torch.Tensor, (4, 4, 6), "torch.uint8"),
        ("torchl", torch.Tensor, (1, 4, 6), "torch.float32"),
        ("torchrgb", torch.Tensor, (3, 4, 6), "torch.float32"),
        ("torch", torch.Tensor, (3, 4, 6), "torch.float32"),
        ("torchrgba", torch.Tensor, (4, 4, 6), "torch.float32"),
        ("pill", Image.Image, (6, 4), "L"),
        ("pil", Image.Image, (6, 4), "RGB"),
        ("pilrgb", Image.Image, (6, 4), "RGB"),
        ("pilrgba", Image.Image, (6, 4), "RGBA"),
    ],
)
def test_the_seventeen_specifications_one_by_one(spec: str, kind: type, shape: tuple[int, ...], dtype: str) -> None:
    png = default_encoders["png"](np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8))
    for name in (spec, spec.upper()):
        image = dataset.imagehandler(png, name)
        assert isinstance(image, kind)
        assert (image.size, image.mode) == (shape, dtype) if kind is Image.Image else True
        if not isinstance(image, Image.Image):
            assert (tuple(image.shape), str(image.dtype)) == (shape, dtype)
            assert dtype.endswith("8") or 0 <= float(image.min()) < float(image.max()) <= 1


# ------------------------------------------------------------------------------------------- writer


def test_the_pages_example_runs(tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((4, 6, 3))
    with (tmp_path / "out.tar").open("wb") as stream:
        tarwriter = writer.TarWriter(stream)
        sample = {"__key__": "a/b", "png": image, "output.png": image[:, :, 0]}
        assert tarwriter.write(sample) > 0
        tarwriter.close()
    (read,) = dataset.WebDataset(str(tmp_path / "out.tar"))
    np.testing.assert_allclose(read["png"], image, atol=0.5 / 255 + 1e-6)
    assert set(read) == {"__key__", "png", "output.png"}


def test_a_shard_writer_hands_every_option_of_a_tar_writer_on(tmp_path: Path) -> None:
    options = [name for name, _, _ in documented()["TarWriter"]][1:]
    given = dict(zip(options, ["me", "us", 0o600, True, False, True], strict=True))
    with writer.ShardWriter(str(tmp_path / "s-%d.tar"), **given) as shard_writer:
        shard_writer.write({"__key__": "k", "x": b"1", "_note": "kept"})
    data = (tmp_path / "s-0.tar").read_bytes()
    assert data.startswith(b"\x1f\x8b")
    assert list(dataset.tariterator(io.BytesIO(data), decoder=False)) == [{"__key__": "k", "_note": b"kept", "x": b"1"}]
