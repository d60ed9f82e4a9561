"""What a configuration may hold, and what is said of one that makes no sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardfeed_server.config import FieldConfig, ServerConfig, StreamConfig, load_config, stream_from_options
from shardfeed_wire.errors import ConfigError

STREAM = """
[streams.train]
shards = "data/train-{000000..000002}.tar"
fields = { image = "jpg;png", label = "cls" }
decode = "rgb8"
transforms = ["random_resized_crop=224", "flip"]
"""


def _written(folder: Path, text: str) -> Path:
    path = folder / "shardfeed.toml"
    path.write_text(text)
    return path


def test_the_example_of_the_documents_loads_with_defaults(tmp_path: Path) -> None:
    config = load_config(_written(tmp_path, STREAM))
    assert config.bind == ("tcp://127.0.0.1:7880",)
    assert config.workers is None
    assert config.send_bytes == 1 << 30
    assert config.sample_timeout == 60
    stream = config.streams["train"]
    assert stream.fields == {"image": "jpg;png", "label": "cls"}
    assert stream.transforms == ("random_resized_crop=224", "flip")
    assert stream.shard_paths() == [str(tmp_path / f"data/train-{i:06d}.tar") for i in range(3)]


def test_relative_paths_are_relative_to_the_file_and_absolute_ones_and_urls_stay(tmp_path: Path) -> None:
    text = """
code_dir = "code"
[streams.a]
shards = ["near.tar", "/far/away.tar", "https://host/x.tar", "pipe:cat x.tar"]
manifest = "a.manifest"
fields.label = { ext = "cls", label_map = "labels.json" }
"""
    config = load_config(_written(tmp_path, text))
    stream = config.streams["a"]
    assert config.code_dir == str(tmp_path / "code")
    assert stream.shards == (str(tmp_path / "near.tar"), "/far/away.tar", "https://host/x.tar", "pipe:cat x.tar")
    assert stream.manifest == str(tmp_path / "a.manifest")
    assert isinstance(stream.fields, dict)
    field = stream.fields["label"]
    assert isinstance(field, FieldConfig)
    assert field.label_map == str(tmp_path / "labels.json")


def test_a_file_that_begins_with_a_byte_order_mark_is_the_same_without(tmp_path: Path) -> None:
    path = _written(tmp_path, STREAM)
    plain = load_config(path)
    path.write_text(STREAM, encoding="utf-8-sig")
    assert load_config(path) == plain


def test_overrides_count_instead_of_the_file(tmp_path: Path) -> None:
    path = _written(tmp_path, 'bind = "tcp://0.0.0.0:1"\nworkers = 1\n' + STREAM)
    config = load_config(path, {"insecure": True, "workers": 3})
    assert (config.insecure, config.workers, config.bind) == (True, 3, ("tcp://0.0.0.0:1",))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (STREAM.replace("fields", "feilds"), ["streams.train.feilds", "shardfeed.toml", "did you mean 'fields'?"]),
        ("wokers = 2\n" + STREAM, ["wokers", "did you mean 'workers'?"]),
        (STREAM + "colour = 3", ["streams.train.colour", "known are shards, fields"]),
        (
            "[streams.a]\nshards='x'\nfields.image = { ext = 'jpg', colate = 'pad' }",
            ["streams.a.fields.image.colate", "did you mean 'collate'?"],
        ),
        ("[streams.'']\nshards='x'\nfields='jpg'", ["a stream's name is empty"]),
        ("workers = 'many'\n" + STREAM, ["workers", "the text 'many'", "expected int"]),
        (STREAM + "max_pixels = 'big'", ["streams.train.max_pixels", "'big'", "expected int"]),
        (
            "[streams.a]\nshards='x'\nfields.image = { ext = 'jpg', collate = 'heap' }",
            ["streams.a.fields.image.collate", "'heap'", "known are stack, pad, ragged"],
        ),
        (
            "[streams.a]\nshards='x'\nfields.image = { ext = 'jpg', interpolation = 'linear' }",
            ["streams.a.fields.image.interpolation", "'linear'", "did you mean 'bilinear'?"],
        ),
        (
            STREAM + "[[outputs]]\nurl = 'zpush://127.0.0.1:1'\nframing = 'frames'",
            ["outputs.0.framing", "multipart, single"],
        ),
        (STREAM.replace('"rgb8"', "8"), ["streams.train.decode", "the number 8", "expected bool | text"]),
        ("[streams.a]\nshards='x'\nfields = 3", ["streams.a.fields", "jpg;png cls"]),
        ("[streams.a]\nshards='x'\nfields.image = 3", ["streams.a.fields.image", "jpg;png"]),
        ("[streams.a]\nfields='jpg'", ["streams.a", "'shards' is missing"]),
        ("streams = 3", ["streams", "[streams.NAME]"]),
        ("bind = 3\n" + STREAM, ["bind", "tcp://127.0.0.1:7880"]),
        ("", ["'streams' is missing"]),
        ("[streams]", ["no stream is configured"]),
        ("workers = 0\n" + STREAM, ["workers is 0", "1 or more"]),
        ("sample_timeout = 0\n" + STREAM, ["sample_timeout", "above 0"]),
        (STREAM + "block_bytes = 0", ["streams.train", "block_bytes is 0"]),
        (
            "[streams.a]\nfields='jpg'\nshards='~nobody-has-this-name/x.tar'",
            ["streams.a.shards", "'~nobody-has-this-name"],
        ),
        ("bind = []\n" + STREAM, ["bind is empty"]),
        ("bind = 'nowhere'\n" + STREAM, ["'nowhere'", "tcp://"]),
        ("a = = 1", ["not TOML"]),
        ("workers = " + "9" * 5000, ["not TOML", "digits"]),
        ("workers = " + "[" * 5000, ["not TOML", "recursion"]),
        (STREAM + "manifest = 'here\\u0000.ten'".replace("'", '"'), ["streams.train.manifest", "zero byte"]),
        ('code_dir = "/code\\u0000"\n' + STREAM, ["code_dir", "zero byte"]),
    ],
)
def test_an_error_names_the_file_the_place_and_what_to_write(tmp_path: Path, text: str, said: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(_written(tmp_path, text))
    for part in ("shardfeed.toml", *said):
        assert part in str(caught.value)


@pytest.mark.parametrize("url", ["tcp://0.0.0.0:7880", "tcp://10.0.0.1:7880", "tcp://data-0:7880", "tcp://[::]:7880"])
def test_an_address_that_others_reach_is_refused_unless_insecure(url: str) -> None:
    stream = StreamConfig(shards="x.tar", fields="jpg")
    with pytest.raises(ConfigError, match=r"`--insecure` or write `insecure = true`"):
        ServerConfig(streams={"a": stream}, bind=(url,))
    assert ServerConfig(streams={"a": stream}, bind=(url,), insecure=True).bind == (url,)


@pytest.mark.parametrize("url", ["tcp://127.0.0.1:1", "tcp://localhost:1", "tcp://[::1]:1", "ipc:///tmp/x"])
def test_loopback_addresses_need_no_flag(url: str) -> None:
    assert ServerConfig(streams={"a": StreamConfig(shards="x.tar", fields="jpg")}, bind=(url,)).bind == (url,)


def test_health_and_figures_that_others_reach_need_a_consent_that_the_stream_does_not() -> None:
    streams = {"a": StreamConfig(shards="x.tar", fields="jpg")}
    for address in ("0.0.0.0:9880", "[::]:9880", "data-0:9880"):
        with pytest.raises(ConfigError, match=r"`--http-public` or write `http_public = true`"):
            ServerConfig(streams=streams, http=address)
        assert ServerConfig(streams=streams, http=address, http_public=True).http == address
        assert ServerConfig(streams=streams, http=address, insecure=True).http == address
    with pytest.raises(ConfigError, match="--insecure"):
        ServerConfig(streams=streams, bind=("tcp://0.0.0.0:7880",), http_public=True)


@pytest.mark.parametrize("address", ["off", "127.0.0.1:0", "localhost:9880", "[::1]:9880"])
def test_health_and_figures_for_this_machine_need_no_flag(address: str) -> None:
    assert ServerConfig(streams={"a": StreamConfig(shards="x.tar", fields="jpg")}, http=address).http == address


@pytest.mark.parametrize("address", ["", "9880", "127.0.0.1", "http://127.0.0.1:9880", "127.0.0.1:99999", "on"])
def test_an_http_address_that_is_none_is_refused_with_what_to_write(address: str) -> None:
    with pytest.raises(ConfigError, match=r"write for example 127\.0\.0\.1:9880, or off"):
        ServerConfig(streams={"a": StreamConfig(shards="x.tar", fields="jpg")}, http=address)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml: No such file"):
        load_config(tmp_path / "nothing.toml")


def test_options_make_the_same_stream_as_a_file() -> None:
    stream = stream_from_options(["a.tar", "b.tar"], fields="jpg;png cls", resize="224x224", transforms=["flip"])
    assert stream == StreamConfig(
        shards=("a.tar", "b.tar"), fields="jpg;png cls", transforms=("resize=224x224", "flip")
    )
    assert stream_from_options(["a.tar"], fields="jpg", decode="l8", max_pixels=5).max_pixels == 5
