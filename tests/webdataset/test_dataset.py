"""WebDataset: every documented parameter does what its page says."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from shardfeed_wire.errors import ConfigError, SampleError, ShardError
from tests.webdataset.tars import numbered_files, tar_bytes, write_tar
from webdataset import WebDataset
from webdataset.writer import ShardWriter

IMAGE = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)


@pytest.fixture
def pattern(tmp_path: Path) -> str:
    """Write four shards of 5 samples with an image and a class, and give their pattern."""
    with ShardWriter(str(tmp_path / "s-%06d.tar"), maxcount=5) as writer:
        for number in range(20):
            writer.write({"__key__": f"{number:04d}", "png" if number % 2 else "ppm": IMAGE, "cls": number})
    return str(tmp_path / "s-{000000..000003}.tar")


def test_a_string_is_expanded_and_a_list_is_taken_as_it_is(pattern: str) -> None:
    dataset = WebDataset(pattern)
    assert [sample["cls"] for sample in dataset] == list(range(20))
    assert [sample["__key__"] for sample in WebDataset(dataset.full_urls[2:])] == [f"{n:04d}" for n in range(10, 20)]
    with pytest.raises(ConfigError, match="no shards"):
        WebDataset([])


def test_without_extensions_samples_are_dicts_decoded_as_float_rgb(pattern: str) -> None:
    sample = next(iter(WebDataset(pattern)))
    assert set(sample) == {"__key__", "ppm", "cls"}
    assert sample["ppm"].dtype == np.float32
    np.testing.assert_array_equal(sample["ppm"], IMAGE.astype("f4") / np.float32(255))


@pytest.mark.parametrize(
    "extensions", ["png;ppm cls what", [["png", "ppm"], ["cls"], ["what"]], ["png;ppm", "CLS", "what"]]
)
def test_with_extensions_samples_are_tuples_of_the_first_present(pattern: str, extensions: Any) -> None:
    for number, (image, label, what) in enumerate(WebDataset(pattern, extensions=extensions, decoder="rgb8")):
        np.testing.assert_array_equal(image, IMAGE)
        assert label == number
        assert what is None


def test_extensions_that_say_nothing_are_refused() -> None:
    for extensions in ("", "png;;jpg", [[""]]):
        with pytest.raises(ConfigError, match="png;jpg cls"):
            WebDataset("x.tar", extensions=extensions)


def test_the_decoder_is_none_a_specification_a_dict_or_a_function(pattern: str) -> None:
    assert next(iter(WebDataset(pattern, decoder=None)))["cls"] == b"0"
    assert next(iter(WebDataset(pattern, decoder=False)))["cls"] == b"0"
    assert next(iter(WebDataset(pattern, decoder="torchrgb8")))["ppm"].shape == (3, 5, 6)
    assert next(iter(WebDataset(pattern, decoder={"cls": lambda data: data + b"!"})))["cls"] == b"0!"
    functional = WebDataset(pattern, decoder=lambda sample: {**sample, "n": len(sample["ppm"])}, extensions="n")
    assert next(iter(functional)) == (len(IMAGE.tobytes()) + len(b"P6\n6 5\n255\n"),)


def test_transforms_cycle_over_the_fields_and_none_leaves_one(pattern: str) -> None:
    negate = lambda value: -value  # noqa: E731
    both = next(iter(WebDataset(pattern, extensions="cls cls cls", transforms=[lambda value: value + 1, None])))
    assert both == (1, 0, 1)
    assert [sample for (sample,) in WebDataset(pattern, extensions="cls", transforms=[negate])] == [
        -n for n in range(20)
    ]
    with pytest.raises(ConfigError, match="extensions"):
        next(iter(WebDataset(pattern, transforms=[negate])))


def test_a_pipeline_maps_the_iterator(pattern: str) -> None:
    def pairs(samples: Iterator[Any]) -> Iterator[Any]:
        for (one,), (other,) in zip(samples, samples, strict=True):
            yield one, other

    assert list(WebDataset(pattern, extensions="cls", pipeline=pairs)) == [(n, n + 1) for n in range(0, 20, 2)]


def test_keys_are_split_as_told(pattern: str) -> None:
    dataset = WebDataset(
        pattern, keys=lambda path: ("all", f"{path[:4]}.cls") if path.endswith("cls") else (None, None)
    )
    assert [len(sample) for sample in dataset] == [6, 6, 6, 6]


def test_the_opener_is_a_function_or_a_command(pattern: str) -> None:
    opened: list[str] = []

    def opener(url: str) -> Any:
        opened.append(url)
        return Path(url).open("rb")

    dataset = WebDataset(pattern, opener=opener)
    assert len(list(dataset)) == 20
    assert opened == dataset.full_urls
    assert len(list(WebDataset(pattern, opener="cat {url}"))) == 20
    with pytest.raises(ShardError, match=r"s-000000\.tar.*exit status 1"):
        list(WebDataset(pattern, opener="cat {url}; exit 1"))


@pytest.fixture
def partly_bad(tmp_path: Path) -> list[str]:
    """Give a missing shard, a truncated one, one with a bad sample, and a good one."""
    whole = tar_bytes(numbered_files(range(3)))
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole.rstrip(b"\0")) - 600])
    write_tar(tmp_path / "bad.tar", [("a.cls", b"1"), ("b.json", b"{"), ("c.cls", b"3")])
    write_tar(tmp_path / "good.tar", [("d.cls", b"4")])
    return [str(tmp_path / name) for name in ("missing.tar", "cut.tar", "bad.tar", "good.tar")]


def test_errors_raise_and_name_the_shard(partly_bad: list[str]) -> None:
    for url, message in zip(partly_bad, ["No such file", "truncated", "sample b, field json"], strict=False):
        with pytest.raises((ShardError, SampleError), match=f"shard {url}: .*{message}") as caught:
            list(WebDataset([url]))
        assert caught.value.shard == url


def test_errors_warn_and_go_on(partly_bad: list[str]) -> None:
    with pytest.warns(UserWarning, match="left out: shard") as caught:
        keys = [sample["__key__"] for sample in WebDataset(partly_bad, errors="warn")]
    assert keys == ["000000", "000001", "a", "c", "d"]
    assert len(caught) == 3


def test_errors_go_on_silently(partly_bad: list[str]) -> None:
    assert len(list(WebDataset(partly_bad, errors=False))) == 5
    failing = WebDataset(partly_bad, errors=False, extensions="cls", transforms=[lambda value: 1 // (value - 3)])
    assert len([sample for sample in failing if sample]) == 4


def test_verbose_names_each_shard(pattern: str, capsys: pytest.CaptureFixture[str]) -> None:
    list(WebDataset(pattern, verbose=True))
    assert capsys.readouterr().err.count("reading ") == 4
    list(WebDataset(pattern))
    assert capsys.readouterr().err == ""


def classes(dataset: WebDataset) -> list[int]:
    """Read all classes."""
    return [sample["cls"] for sample in dataset]


def test_shuffle_1_shuffles_shards_and_more_also_samples(pattern: str) -> None:
    random.seed(0)
    by_shard = classes(WebDataset(pattern, shuffle=1))
    assert sorted(by_shard) == list(range(20))
    assert by_shard != list(range(20))
    assert all(by_shard[at : at + 5] == list(range(by_shard[at], by_shard[at] + 5)) for at in range(0, 20, 5))
    mixed = classes(WebDataset(pattern, shuffle=10))
    assert sorted(mixed) == list(range(20))
    assert any(later - earlier not in (1, -19) for earlier, later in pairwise(mixed))


@pytest.mark.parametrize("buffer", [2, 3, 19, 20, 21, 10_000])
def test_a_shuffle_buffer_of_any_size_gives_every_sample_once(pattern: str, buffer: int) -> None:
    assert sorted(classes(WebDataset(pattern, shuffle=buffer))) == list(range(20))


def test_a_large_shuffle_buffer_yields_early(tmp_path: Path) -> None:
    read: list[int] = []
    url = write_tar(tmp_path / "x.tar", [(f"{n:05d}.cls", str(n).encode()) for n in range(3000)])
    dataset = WebDataset([url], shuffle=2000, decoder=lambda sample: read.append(1) or sample)
    samples = iter(dataset)
    next(samples)
    assert len(read) <= 101
    samples.close()  # type: ignore[attr-defined]  # a generator


def test_associate_adds_fields_by_key(pattern: str) -> None:
    by_function = WebDataset(pattern, associate=lambda key: {"twice": 2 * int(key)}, extensions="cls twice")
    assert [twice for _, twice in by_function] == list(range(0, 40, 2))
    by_dict = WebDataset(pattern, associate={"0003": {"name": "three"}}, extensions="name")
    assert [name for (name,) in by_dict if name] == ["three"]


def test_a_sample_that_associate_fails_at_is_an_error_like_others(pattern: str) -> None:
    table = {f"{number:04d}": {"half": number / 2} for number in range(20) if number != 7}
    with pytest.raises(KeyError, match="0007"):
        list(WebDataset(pattern, associate=table.__getitem__))
    for errors in ("warn", False):
        with pytest.warns(UserWarning, match="left out: '0007'") if errors else nullcontext():
            samples = list(WebDataset(pattern, associate=table.__getitem__, errors=errors))
        assert [sample["half"] for sample in samples] == [number / 2 for number in range(20) if number != 7]


def test_containers_are_whole_samples(tmp_path: Path) -> None:
    files = [(f"{n}.json", json.dumps({"__key__": str(n), "n": n}).encode()) for n in range(3)]
    url = write_tar(tmp_path / "x.tar", files)
    assert list(WebDataset([url], container="json", extensions="n")) == [(0,), (1,), (2,)]
    with pytest.raises(ConfigError, match="allow_pickle"):
        WebDataset([url], container="pyd")


def test_subset_and_shard_selection_choose_every_total_th_shard(pattern: str) -> None:
    dataset = WebDataset(pattern)
    dataset.subset = (1, 2)
    assert classes(dataset) == [*range(5, 10), *range(15, 20)]
    assert dataset.urls == dataset.full_urls[1::2]
    dataset.subset = None
    dataset.shard_selection()
    assert dataset.urls == dataset.full_urls


def test_prepare_for_worker_is_called_first_and_false_leaves_out_the_split(pattern: str) -> None:
    called: list[str] = []
    dataset = WebDataset(
        pattern, prepare_for_worker=lambda: called.append("now"), opener=lambda url: called.append(url) or None
    )
    with pytest.raises(AttributeError):
        next(iter(dataset))
    assert called[0] == "now"
    whole = WebDataset(pattern, prepare_for_worker=False)
    whole.subset = (1, 2)
    assert len(classes(whole)) == 20


@pytest.mark.parametrize("workers", [1, 2])
def test_the_workers_of_a_dataloader_share_the_shards(pattern: str, workers: int) -> None:
    loader = DataLoader(WebDataset(pattern, extensions="cls"), batch_size=4, num_workers=workers)
    assert sorted(label for (labels,) in loader for label in labels.tolist()) == list(range(20))


def test_more_workers_than_shards_is_warned_of(pattern: str) -> None:
    dataset = WebDataset(pattern)
    dataset.subset = (0, 5)
    with pytest.warns(UserWarning, match="5 workers for 4 shards"):
        dataset.shard_selection()


def test_an_abandoned_iterator_closes_its_shard(pattern: str) -> None:
    opened: list[Any] = []

    def opener(url: str) -> Any:
        opened.append(Path(url).open("rb"))  # noqa: SIM115 - that it is closed is what is tested
        return opened[-1]

    samples = iter(WebDataset(pattern, opener=opener))
    next(samples)
    samples.close()  # type: ignore[attr-defined]  # a generator
    assert [stream.closed for stream in opened] == [True]


def test_a_dataset_pickles_to_workers_that_are_not_forked(pattern: str) -> None:
    dataset = WebDataset(pattern, extensions="ppm;png cls", opener="cat {url}", decoder="rgb8")
    assert [label for _, label in pickle.loads(pickle.dumps(dataset))] == list(range(20))
    pickle.dumps(WebDataset(pattern, container="ten"))
