"""`shardfeed serve`: what it prints, what it refuses, how it ends; and `info` and `preview` of what it serves."""

from __future__ import annotations

import gzip
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from shardfeed import RemoteDataset
from tests.cli.command import Running, run, started
from tests.photographs import PICTURES, Photographs, write_shards
from webdataset.images import decodes_parts

pytestmark = pytest.mark.xdist_group("cli-serve")

CONFIGURATION = """\
bind = ["tcp://127.0.0.1:1"]
workers = 1
name = "reader"

[streams.train]
shards = "train-{000000..000003}.tar"
fields = { image = "jpg", label = "cls" }
transforms = ["random_resized_crop=48x64"]

[streams.plain]
shards = ["train-000000.tar", "train-000001.tar"]
fields = "txt cls"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photographs: Photographs) -> Path:
    """40 photographs with names and classes in four shards, and the configuration of two streams of them."""
    folder = tmp_path_factory.mktemp("cli")
    samples = [
        (key, {"jpg": jpeg, "cls": b"%d" % label, "txt": PICTURES[label].encode()})
        for key, jpeg, label in photographs[:40]
    ]
    write_shards(folder, samples, 4)
    (folder / "shardfeed.toml").write_text(CONFIGURATION)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    """A server of the configuration, on a free port in place of the one that the file names."""
    with started(
        "serve", "--config", folder / "shardfeed.toml", "--bind", "tcp://127.0.0.1:0", log=folder / "server.log"
    ) as running:
        running.endpoint()
        yield running


def test_what_is_served_is_printed_plainly(server: Running) -> None:
    lines = server.said().splitlines()
    assert "stream train: 40 samples in 4 shards, batches are dicts" in lines
    assert "  column image: uint8 (64, 48, 3)" in lines or "  column image: uint8 (48, 64, 3)" in lines
    assert "  column label: int64 scalar" in lines
    assert "stream plain: 20 samples in 2 shards, batches are tuples" in lines
    assert "  column txt: text" in lines
    assert "server: reader, workers: 1" in lines
    cutting = "only its part of a JPEG is decoded" if decodes_parts() else "whole JPEGs are decoded"
    assert any(line.startswith(f"random_resized_crop: {cutting}") for line in lines)
    endpoint = server.endpoint()
    assert not endpoint.endswith(":1")
    assert f"listening on {endpoint}: ZeroMQ over TCP, framing multipart or single, as the client asks" in lines
    assert f'read train with: RemoteDataset("{endpoint}", stream="train", batch_size=64)' in lines
    assert "\x1b" not in server.said()


def test_the_line_of_python_that_is_printed_reads_the_stream(server: Running) -> None:
    (line,) = server.wait_for(r"^read plain with: (.*)$")
    with eval(line, {"RemoteDataset": RemoteDataset}) as dataset:
        texts, labels = next(iter(dataset))
    assert len(texts) == 20
    assert texts == [PICTURES[label] for label in labels.tolist()]


def test_info_says_in_words_and_as_json_what_a_server_is(server: Running) -> None:
    endpoint = server.endpoint()
    plain, as_json = run("info", endpoint), run("info", endpoint, "--json")
    assert plain.returncode == 0, plain.stderr
    assert f"server: reader at {endpoint}" in plain.stdout
    assert "stream train: 40 samples in 4 shards" in plain.stdout
    assert "recipe transforms: random_resized_crop=48x64" in plain.stdout
    (line,) = as_json.stdout.splitlines()
    facts = json.loads(line)
    assert (facts["server"], facts["workers"], facts["version"]) == ("reader", 1, 1)
    train = next(stream for stream in facts["streams"] if stream["name"] == "train")
    assert (train["samples"], train["shards"]) == (40, 4)
    assert [column["name"] for column in train["columns"]] == ["image", "label"]
    assert f"data {train['data']}, recipe {train['recipe']}" in plain.stdout


def test_info_tells_of_servers_that_answer_and_names_those_that_do_not(server: Running) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    done = run("info", f"{{{nobody},{server.endpoint()}}}")
    assert done.returncode == 1
    assert "server: reader" in done.stdout
    assert done.stderr.startswith("error: ")
    assert nobody in done.stderr
    assert "shardfeed serve" in done.stderr


def test_preview_draws_the_pictures_that_a_trainer_gets_first(server: Running, tmp_path: Path) -> None:
    endpoint, picture = server.endpoint(), tmp_path / "grid.png"
    done = run("preview", endpoint, "-n", "6", "-o", picture, "--stream", "train", "--seed", "3", "--epoch", "2")
    assert done.returncode == 0, done.stderr
    with RemoteDataset(endpoint, stream="train", batch_size=6, seed=3, rank=0, world_size=1) as dataset:
        dataset.set_epoch(2)
        images = next(iter(dataset))["image"]
    height, width = images.shape[1:3]
    scale = -(-64 // max(height, width))  # pictures with sides below 64 are drawn larger, by whole factors
    gap, caption = 6, 18
    right, down = scale * width + gap, scale * height + caption + gap
    with Image.open(picture) as grid:
        assert grid.size == (3 * right + gap, 2 * down + gap)
        for row in range(6):
            left, top = gap + row % 3 * right, gap + row // 3 * down
            drawn = grid.crop((left, top, left + scale * width, top + scale * height))
            assert drawn.resize((width, height), Image.Resampling.NEAREST).tobytes() == images[row].numpy().tobytes()
            below = grid.crop((left, top + scale * height, left + scale * width, top + scale * height + caption))
            assert below.getextrema()[0][0] < 128  # the label's ink


def test_preview_of_a_stream_without_pictures_names_the_columns(server: Running, tmp_path: Path) -> None:
    done = run("preview", server.endpoint(), "-o", tmp_path / "grid.png", "--stream", "plain")
    assert done.returncode == 1
    assert "holds pictures" in done.stderr
    assert not (tmp_path / "grid.png").exists()


def test_a_server_of_a_manifest_drains_at_sigterm_and_leaves_no_socket(folder: Path, tmp_path: Path) -> None:
    shards, manifest = folder / "train-{000000..000003}.tar", tmp_path / "train.manifest"
    assert run("index", shards, "-o", manifest).returncode == 0
    options = ["--fields", "jpg cls", "--decode", "l8", "--resize", "16", "--transform-op", "center_crop=16"]
    where = ["--bind", f"ipc://{tmp_path}/feed", "--workers", "1", "--stream", "train"]
    name = "n" * 100_000  # which is as good as any: it costs nothing
    arguments = [shards, "--manifest", manifest, "--name", name, *options, *where]
    with started("serve", *arguments, log=tmp_path / "log") as running:
        assert running.endpoint() == f"ipc://{tmp_path}/feed"
        assert f"server: {name}, workers: 1" in running.said()
        assert "column jpg: uint8 (16, 16)" in running.said()
        assert running.stop() == 0
        assert "draining" in running.said()
    assert not (tmp_path / "feed").exists()


def test_a_server_that_cannot_have_one_address_ends_and_leaves_the_socket_of_another_alone(
    folder: Path, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(tmp_path / "feed"))
        living.listen()
        where = ["--bind", "tcp://127.0.0.1:0", "--bind", f"ipc://{tmp_path}/feed"]
        done = run("serve", folder / "train-000000.tar", "--fields", "jpg cls", *where)
        assert done.returncode == 1
        assert "another process listens there" in done.stderr
        assert (tmp_path / "feed").exists()


def test_ctrl_c_while_a_server_starts_ends_it_with_0(folder: Path, tmp_path: Path) -> None:
    socket_file = tmp_path / "feed"
    arguments = ["serve", "--config", folder / "shardfeed.toml", "--bind", f"ipc://{socket_file}"]
    with started(*arguments, log=tmp_path / "log") as running:
        running.wait_until(socket_file.exists)
        assert running.stop(signal.SIGINT) == 0
    assert "Traceback" not in running.said()


# ------------------------------------------------------------------------------------ refused at once


def test_an_address_that_others_reach_is_refused_with_the_flag_that_allows_it(folder: Path) -> None:
    done = run("serve", folder / "train-000000.tar", "--fields", "jpg cls", "--bind", "tcp://0.0.0.0:0")
    assert done.returncode == 1
    assert "tcp://0.0.0.0:0" in done.stderr
    assert "--insecure" in done.stderr


def test_an_unknown_key_is_named_with_its_place_and_the_nearest(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "shardfeed.toml"
    file.write_text(CONFIGURATION.replace("transforms =", "transfroms ="))
    done = run("serve", "--config", file)
    assert done.returncode == 1
    assert str(file) in done.stderr
    assert "streams.train.transfroms" in done.stderr
    assert "did you mean 'transforms'" in done.stderr


@pytest.mark.parametrize(
    ("limit", "workers", "said"),
    [
        (64, 40, ("of 40 cannot be started", "Too many open files")),
        (44, 1, ("this process may have 44 descriptors, and needs", "workers = 1")),
    ],
    ids=["to start", "to answer"],
)
def test_more_workers_than_the_descriptors_allow_are_refused_with_both_ways_out(
    folder: Path, limit: int, workers: int, said: tuple[str, ...]
) -> None:
    program = [sys.executable, "-m", "shardfeed", "serve", str(folder / "train-000000.tar"), "--fields", "cls"]
    options = ["--workers", str(workers), "--bind", "tcp://127.0.0.1:0"]
    done = subprocess.run(
        ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *program, *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    for words in (*said, "ulimit -n", "--workers"):
        assert words in done.stderr
    assert "listening" not in done.stdout


def test_every_bad_shard_is_named_at_once_and_nothing_is_served(folder: Path, tmp_path: Path) -> None:
    good = (folder / "train-000000.tar").read_bytes()
    for name, content in (("a", good), ("b", good[:70_000]), ("c", gzip.compress(good[:5_000])), ("d", b"")):
        (tmp_path / f"{name}.tar").write_bytes(content)
    done = run("serve", tmp_path / "{a,b,c,d,e}.tar", "--fields", "jpg cls", "--bind", f"ipc://{tmp_path}/feed")
    assert done.returncode == 1
    assert "4 of 5 shards are bad" in done.stderr
    assert all(f"shard {name}.tar: " in done.stderr for name in "bcde")
    assert "shardfeed index --unpack DIR" in done.stderr
    assert "listening" not in done.stdout
    assert "Traceback" not in done.stderr
