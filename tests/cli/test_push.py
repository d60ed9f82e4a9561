"""`shardfeed push` and a server's outputs: what receivers without our protocol get, and how that waits and ends."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from shardfeed import ConfigError, PlainDataset, RemoteDataset
from shardfeed_server.config import load_config
from shardfeed_wire.keygen import make_server
from tests.cli.command import Running, run, started
from tests.photographs import Photographs, write_shards
from tests.system.loaders import wait_until

pytestmark = [pytest.mark.xdist_group("cli-push"), pytest.mark.timeout(120)]

PATIENCE = 45.0
CONFIGURATION = """\
bind = "tcp://127.0.0.1:0"
http = "off"
workers = 1

[streams.train]
shards = "train-{000000..000001}.tar"
fields = { image = "jpg", label = "cls" }
transforms = ["resize=48x64"]

[streams.raw]
shards = "train-000000.tar"
fields = { image = "jpg" }
decode = false

[[outputs]]
url = "zrpush://127.0.0.1:0"
stream = "train"
batch_size = 8
seed = 5
infos = true
high_water = 1

[[outputs]]
url = "zrpush+ipc://FOLDER/single"
stream = "train"
framing = "single"
batch_size = 7
shuffle = false
drop_last = true
epochs = 1

[[outputs]]
url = "zpub://127.0.0.1:0"
stream = "train"
batch_size = 20
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photographs: Photographs, temporary_folder: Path) -> Path:
    """20 photographs with classes in two shards, and the configuration of a server with three outputs."""
    folder = tmp_path_factory.mktemp("push")
    samples = [(key, {"jpg": jpeg, "cls": b"%d" % label}) for key, jpeg, label in photographs[:20]]
    write_shards(folder, samples, 2)
    (folder / "shardfeed.toml").write_text(CONFIGURATION.replace("FOLDER", str(temporary_folder)))
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    """The server of the configuration, with its outputs."""
    with started("serve", "--config", folder / "shardfeed.toml", log=folder / "server.log") as running:
        pushed(running, 3)
        yield running


def pushed(running: Running, count: int) -> dict[str, str]:
    """Wait until so many outputs send; give their URLs, as a receiver writes them, by their schemes."""
    urls = running.wait_for(r"^pushing \S+ to (\S+):", count)
    return {url.partition("://")[0]: url.replace("push", "pull").replace("pub", "sub") for url in urls}


def outputs(running: Running) -> list[psutil.Process]:
    """The processes of a server's outputs."""
    return commands(psutil.Process(running.process.pid), "push")


def commands(parent: psutil.Process, word: str) -> list[psutil.Process]:
    """The children of a process that have a word in their command lines."""
    found = []
    for child in parent.children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
            if word in child.cmdline():
                found.append(child)
    return found


def received(url: str, count: int, **options: Any) -> list[Any]:
    with PlainDataset(url, length=count, timeout=PATIENCE, **options) as dataset:
        return list(dataset)


def assert_same(got: Any, expected: Any) -> None:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


# ------------------------------------------------------------------------------------ what is sent


def test_an_output_waits_for_its_receiver_and_sends_epoch_after_epoch_in_the_order_of_its_seed(
    server: Running,
) -> None:
    got = received(pushed(server, 3)["zrpush"], 7, infos=True)  # 3 batches make an epoch
    assert [names for _, names in got] == [["image", "label"]] * 7
    expected = []
    with RemoteDataset(server.endpoint(), stream="train", batch_size=8, seed=5, rank=0, world_size=1) as dataset:
        for _ in range(3):
            expected += [(batch["image"], batch["label"]) for batch in dataset]
    assert [len(images) for images, _ in expected[:4]] == [8, 8, 4, 8]
    for (batch, _), wanted in zip(got, expected[:7], strict=True):
        assert_same(batch, wanted)


def test_an_output_of_one_epoch_in_file_order_and_single_framing_ends_and_the_server_goes_on(server: Running) -> None:
    got = received(pushed(server, 3)["zrpush+ipc"], 2, framing="single")
    with RemoteDataset(
        server.endpoint(), stream="train", batch_size=7, shuffle=False, drop_last=True, rank=0, world_size=1
    ) as dataset:
        for batch, wanted in zip(got, dataset, strict=True):
            assert_same(batch, wanted.values())
    wait_until(lambda: len(outputs(server)) == 2, PATIENCE, "the end of the output with one epoch")
    assert run("info", server.endpoint()).returncode == 0


def test_a_published_stream_loses_batches_that_nobody_takes_and_the_log_counts_them(server: Running) -> None:
    server.wait_for(r"epoch \d+: 1 batches sent, 1 dropped")
    (batch,) = received(pushed(server, 3)["zpub"], 1)
    assert [len(column) for column in batch] == [20, 20]


def test_push_reads_any_servers_and_sends_to_several_receivers(server: Running, tmp_path: Path) -> None:
    with PlainDataset("zpull://127.0.0.{1,2}:0", infos=["a", "b"], timeout=PATIENCE) as dataset:
        arriving = iter(dataset)
        first, second = (url.replace("pull", "push") for url in dataset.urls)
        arguments = ["push", server.endpoint(), f"{{{first},{second}}}", "--batch-size", "5"]
        with started(
            *arguments, "--stream", "train", "--epochs", "2", "--info", "a", "--info", "b", log=tmp_path / "log"
        ) as running:
            got = [next(arriving) for _ in range(8)]
            assert running.process.wait(PATIENCE) == 0
    assert "epoch 1: 4 batches sent, 0 dropped" in running.said()
    with RemoteDataset(server.endpoint(), stream="train", batch_size=5, rank=0, world_size=1) as remote:
        expected = [batch["label"].tolist() for _ in range(2) for batch in remote]
    assert sorted(labels.tolist() for _, labels in got) == sorted(expected)


# ------------------------------------------------------------------------------------ faults and ends


def private_folder(output: psutil.Process) -> Path:
    """The folder of the server's endpoint for its own outputs."""
    (endpoint,) = (word for word in output.cmdline() if word.startswith("ipc://"))
    return Path(endpoint.removeprefix("ipc://")).parent


def a_server(folder: Path, log: Path, *options: str) -> Any:
    shards = folder / "train-{000000..000001}.tar"
    bind = ["--bind", "tcp://127.0.0.1:0", "--http", "off", "--workers", "1"]
    return started("serve", shards, "--fields", "jpg cls", *bind, *options, log=log)


def test_a_server_with_curve_keys_sends_too_and_told_to_stop_ends_its_outputs_and_leaves_nothing(
    folder: Path, tmp_path: Path, temporary_folder: Path
) -> None:
    keys = make_server(tmp_path / "keys")
    where = f"zrpush+ipc://{temporary_folder}/out"
    options = ["--push", where, "--push-batch-size", "20", "--curve", str(keys)]
    with a_server(folder, tmp_path / "log", *options) as running:
        ((images, labels),) = received(pushed(running, 1)["zrpush+ipc"], 1)
        assert (images.shape, labels.shape) == ((20, 375, 500, 3), (20,))
        (output,) = outputs(running)
        private = private_folder(output)
        assert private.stat().st_mode & 0o777 == 0o700
        assert running.stop(signal.SIGINT) == 0
    assert "Traceback" not in running.said()
    assert not output.is_running()
    assert not private.exists()
    assert not (temporary_folder / "out").exists()


def test_an_output_that_is_killed_is_started_again_and_ends_with_a_server_that_is_killed(
    folder: Path, tmp_path: Path
) -> None:
    with a_server(folder, tmp_path / "log", "--push", "zrpush://127.0.0.1:0") as running:
        pushed(running, 1)
        outputs(running)[0].kill()
        running.wait_for(r"^pushing default to zrpush", 2)
        assert "process was killed and is started again" in running.said()
        (output,) = outputs(running)
        family, private = psutil.Process(running.process.pid).children(recursive=True), private_folder(output)
        running.process.kill()
        running.process.wait(PATIENCE)
        assert psutil.wait_procs(family, PATIENCE)[1] == []
        assert not private.exists()


def test_an_output_begins_anew_with_a_stream_that_sighup_changes(folder: Path, tmp_path: Path) -> None:
    file = folder / "changing.toml"
    head, _, tables = CONFIGURATION.partition("[streams.raw]")
    output = tables.partition("[[outputs]]")[2].partition("[[outputs]]")[0]
    file.write_text(f"{head}[[outputs]]{output}")
    with started("serve", "--config", file, log=tmp_path / "log") as running:
        (before,) = received(pushed(running, 1)["zrpush"], 1)
        file.write_text(f"{head.replace('48x64', '16x20')}[[outputs]]{output}")
        running.process.send_signal(signal.SIGHUP)
        url = running.wait_for(r"^pushing train to (\S+):", 2)[1]
        (after,) = received(url.replace("push", "pull"), 1)
        assert running.stop() == 0
    assert before[0].shape == (8, 48, 64, 3)
    assert after[0].shape == (8, 16, 20, 3)


def test_an_output_that_cannot_begin_ends_the_server_with_its_reason(
    folder: Path, server: Running, tmp_path: Path
) -> None:
    taken = pushed(server, 3)["zrpush"].replace("pull", "push")
    with a_server(folder, tmp_path / "log", "--push", taken) as running:
        assert running.process.wait(PATIENCE) == 1
    assert f"error: cannot bind {taken}" in running.said()
    assert f"error: output {taken}: its process ended with exit status 1" in running.said()


def test_columns_that_are_no_arrays_and_streams_that_there_are_not_are_refused_by_name(server: Running) -> None:
    done = run("push", server.endpoint(), "zrpush://127.0.0.1:0", "--stream", "raw")
    assert done.returncode == 1
    assert "stream 'raw': column 'image' is bytes, and plain streams carry arrays alone" in done.stderr
    done = run("push", server.endpoint(), "zrpush://127.0.0.1:0", "--stream", "val")
    assert done.returncode == 1
    assert "no stream 'val' there; there are: raw, train" in done.stderr


def test_a_private_server_of_the_configuration_sends_nothing(folder: Path) -> None:
    with RemoteDataset(
        f"local:{folder}/shardfeed.toml", stream="train", batch_size=20, rank=0, world_size=1
    ) as dataset:
        batches = iter(dataset)  # kept: one that is dropped ends the server
        next(batches)
        (server,) = [child for child in psutil.Process().children() if "--no-push" in child.cmdline()]
        assert [child for child in server.children() if "push" in child.cmdline()] == []


def test_an_address_that_others_reach_is_refused_with_the_flag_that_allows_it(folder: Path) -> None:
    done = run("serve", folder / "train-000000.tar", "--fields", "jpg cls", "--push", "zrpush://0.0.0.0:0")
    assert done.returncode == 1
    assert "zrpush://0.0.0.0:0" in done.stderr
    assert "--insecure" in done.stderr


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ('url = "zpub://127.0.0.1:1"\nstream = "val"', "a stream 'val'; there are: raw, train"),
        ('url = "zpub://127.0.0.1:1"', "needs a stream; there are: raw, train"),
        ('url = "zpub://127.0.0.1:1"\nbatchsize = 3', "did you mean 'batch_size'"),
        ('url = "zpub://127.0.0.1:1"\nbatch_size = 0', "batch_size is 0"),
        ('url = "zpub://127.0.0.1:1"\nframing = "both"', "framing"),
        ('url = "zpull://127.0.0.1:1"', "receives|sends"),
        ('url = "tcp://127.0.0.1:1"', "no plain stream"),
    ],
)
def test_a_wrong_table_is_named_with_its_place(tmp_path: Path, table: str, why: str) -> None:
    file = tmp_path / "shardfeed.toml"
    file.write_text(f"{CONFIGURATION.partition('[[outputs]]')[0]}[[outputs]]\n{table}\n")
    with pytest.raises(ConfigError, match=rf"{re.escape(str(file))}.*outputs.*{why}"):
        load_config(file)
