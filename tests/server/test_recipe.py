"""Recipes: fields as people write them, and fingerprints that change with everything that changes a pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shardfeed_server.config import FieldConfig, StreamConfig
from shardfeed_server.fields import parse_fields
from shardfeed_server.recipe import Recipe
from shardfeed_wire.errors import ConfigError


def _config(**values: Any) -> StreamConfig:
    return StreamConfig(**{"shards": "x.tar", "fields": "jpg cls", **values})


@pytest.mark.parametrize(
    ("fields", "names", "extensions", "unnamed"),
    [
        ("jpg;png cls", ["jpg", "cls"], [("jpg", "png"), ("cls",)], True),
        ("image=jpg;png label=cls", ["image", "label"], [("jpg", "png"), ("cls",)], False),
        ({"image": "JPG;.png"}, ["image"], [("jpg", "png")], False),
        (("jpg", FieldConfig(ext="seg.png")), ["jpg", "seg.png"], [("jpg",), ("seg.png",)], True),
    ],
)
def test_fields_are_read_in_every_form(fields: Any, names: list[str], extensions: list[Any], unnamed: bool) -> None:
    parsed, is_unnamed = parse_fields(_config(fields=fields))
    assert [field.name for field in parsed] == names
    assert [field.extensions for field in parsed] == extensions
    assert is_unnamed is unnamed


@pytest.mark.parametrize(
    ("name", "ext", "way"),
    [
        ("image", "jpg", "bilinear"),
        ("mask", "png", "nearest"),
        ("road_mask", "png", "nearest"),
        ("masked", "png", "bilinear"),
        ("labels", "seg.png", "nearest"),
        ("labels", "left.mask.png", "nearest"),
        ("labels", "segment.png", "bilinear"),
    ],
)
def test_masks_are_known_by_name_or_extension(name: str, ext: str, way: str) -> None:
    (field,), _ = parse_fields(_config(fields={name: ext}))
    assert field.interpolation == way
    (field,), _ = parse_fields(_config(fields={name: FieldConfig(ext=ext, interpolation="bicubic")}))
    assert field.interpolation == "bicubic"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"fields": ""}, ["fields is empty", "jpg;png cls"]),
        ({"fields": {}}, ["fields is empty"]),
        ({"fields": "image=jpg cls"}, ["'cls' must be NAME=EXTENSIONS"]),
        ({"fields": "jpg;;png"}, ["'jpg;;png'", "semicolons"]),
        ({"fields": "jpg jpg"}, ["two fields or masks are named 'jpg'"]),
        ({"fields": {"__key__": "cls"}}, ["'__key__'", "underscores"]),
        ({"decode": "rgb9"}, ["field 'jpg'", "rgb9", "torchrgb8"]),
        ({"decode": True}, ["decode is true", "rgb8"]),
        ({"fields": "jpg;npy"}, ["mixes pictures (.jpg) with .npy"]),
        ({"fields": "pyd"}, [".pyd holds pickled objects", "decode = false"]),
        ({"fields": {"a": FieldConfig(ext="x.pth")}}, [".pth holds pickled objects"]),
        ({"fields": {"a": FieldConfig(ext="npy", max_len=3)}}, ["'a'", 'collate = "pad"']),
        ({"fields": {"a": FieldConfig(ext="npy", collate="pad", max_len=0)}}, ["max_len is 0"]),
        (
            {"fields": {"a": FieldConfig(ext="npy", collate="pad", max_len=1 << 50)}},
            ["'a'", "max_len", "1 to 4294967296"],
        ),
        (
            {"fields": {"a": FieldConfig(ext="npy", collate="pad", mask="b"), "b": "cls"}},
            ["two fields or masks are named 'b'"],
        ),
        ({"fields": {"a": FieldConfig(ext="cls", label_map="none.json")}}, ["'a'", "none.json", "cannot be read"]),
        ({"fields": "cls", "transforms": ("flip",)}, ["flip", "has none"]),
        ({"transforms": ("flop",)}, ["did you mean 'flip'"]),
        ({"transforms": ("resize=" + "9" * 5000,)}, ["1 to 65535"]),
        ({"transform": "noname"}, ["module:name"]),
        ({"transform": "no_such_module_here:f"}, ["no_such_module_here", "ModuleNotFoundError", "no code_dir is set"]),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused_with_what_to_write(config: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe(_config(**config))
    for part in said:
        assert part in str(caught.value)


def test_a_label_map_that_is_no_table_of_numbers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    for written in (b'["cat"]', b'{"\xff": 1}', b'{"cat": ' + b"[" * 5000):
        path.write_bytes(written)
        with pytest.raises(ConfigError, match=r'labels\.json must be JSON such as \{"cat": 0\}'):
            Recipe(_config(fields={"label": FieldConfig(ext="cls", label_map=str(path))}))


def test_pickles_may_be_sent_as_bytes() -> None:
    assert Recipe(_config(fields={"a": FieldConfig(ext="pyd", decode=False)})).fields[0].raw


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"fields": "png cls"}, "field png"),
        ({"fields": "image=jpg label=cls"}, "fields"),
        ({"decode": "rgb"}, "field jpg"),
        ({"transforms": ("resize=225",)}, "transforms"),
        ({"transforms": ("resize=224", "flip")}, "transforms"),
        ({"max_pixels": 5}, "max_pixels"),
        ({"fields": ("jpg", FieldConfig(ext="cls", label_map={"a": 1}))}, "label_map cls"),
        ({"fields": (FieldConfig(ext="jpg", interpolation="bicubic"), "cls")}, "field jpg"),
        ({"fields": (FieldConfig(ext="jpg", collate="ragged"), "cls")}, "field jpg"),
        ({"fields": (FieldConfig(ext="jpg", collate="pad", pad_value=3), "cls")}, "field jpg"),
    ],
)
def test_what_changes_a_pixel_changes_the_fingerprint_and_is_named_in_the_facts(change: Any, fact: str) -> None:
    one, other = (
        Recipe(_config(transforms=("resize=224",))),
        Recipe(_config(**{"transforms": ("resize=224",), **change})),
    )
    assert one.fingerprint != other.fingerprint
    assert one.facts.get(fact) != other.facts[fact]


def test_what_changes_no_pixel_leaves_the_fingerprint() -> None:
    one = Recipe(_config(transforms=("resize=224x224",)))
    other = Recipe(
        _config(
            shards="elsewhere.tar", fields=("jpg", FieldConfig(ext="cls")), transforms=(" resize = 224x224",),
            manifest="x", block_bytes=5, exclude_bad=True,
        )
    )  # fmt: skip
    assert one.fingerprint == other.fingerprint
    assert set(one.facts) >= {"numpy", "pillow", "simplejpeg", "torch", "transforms", "transform"}
    assert "torchvision" not in one.facts


def test_the_label_maps_content_counts_and_not_where_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text('{"b": 1, "a": 0}')
    inline = Recipe(_config(fields={"label": FieldConfig(ext="cls", label_map={"a": 0, "b": 1})}))
    file = Recipe(_config(fields={"label": FieldConfig(ext="cls", label_map=str(path))}))
    assert inline.fingerprint == file.fingerprint


def test_the_code_of_a_transform_counts_with_every_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "hook.py").write_text("")
    (tmp_path / "fingerprinted.py").write_text("import PIL.Image, inner.more, os\ndef f(sample): return sample\n")
    (tmp_path / "inner" / "more.py").write_text("import msgspec\n")
    config = _config(transform="fingerprinted:f")
    first = Recipe(config, tmp_path)
    assert {name for name in first.facts if name.startswith("code ")} == {"code fingerprinted.py", "code inner/more.py"}
    assert "msgspec" in first.facts
    assert "os" not in first.facts
    assert first.fingerprint == Recipe(config, tmp_path).fingerprint
    (tmp_path / "inner" / "more.py").write_text("import msgspec  # changed\n")
    changed = Recipe(config, tmp_path)
    assert changed.fingerprint != first.fingerprint
    assert [name for name in first.facts if changed.facts[name] != first.facts[name]] == ["code inner/more.py"]
