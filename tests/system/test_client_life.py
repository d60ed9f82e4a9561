"""A RemoteDataset as trainers treat theirs: left early, forgotten, pickled, forked, killed."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch.utils.data import DataLoader

from shardfeed import ClosedChannelError, ConfigError, EndpointError, RemoteDataset, delivery, fetching
from shardfeed.feed import Delivered
from shardfeed.plan import Plan
from shardfeed.routing import Step
from tests.photographs import Photographs
from tests.system.loaders import Loader, wait_until, write_photographs

pytestmark = pytest.mark.xdist_group("client-life")  # one process starts the server of all

SAMPLES = 256
OPTIONS = ("--workers", "1")


@pytest.fixture(scope="module")
def shards(thumbnails: Photographs, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_photographs(tmp_path_factory.mktemp("life"), thumbnails[:SAMPLES], count=2)


@pytest.fixture(scope="module")
def server(shards: list[Path]) -> Iterator[Loader]:
    with Loader.of(shards, *OPTIONS) as server:
        yield server


@pytest.fixture(scope="module")
def config(shards: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "shardfeed.toml"
    path.write_text(
        f"""
        workers = 1
        [streams.train]
        shards = {[str(shard) for shard in shards]}
        fields = {{ image = "jpg;png", label = "cls" }}
        """
    )
    return path


def network_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "shardfeed"]


def keys(dataset: RemoteDataset) -> list[str]:
    return [key for *_, info in dataset for key in info.keys]


def test_a_loop_left_early_leaves_no_thread_and_begins_the_epoch_again(server: Loader) -> None:
    dataset = RemoteDataset(server.url, batch_size=16, info=True)
    batches = iter(dataset)
    *_, first = next(batches)
    del batches, _
    gc.collect()
    wait_until(lambda: not network_threads(), what="the end of the network thread")
    assert dataset.epoch == 0
    *_, again = next(iter(dataset))
    assert again.keys == first.keys
    dataset.close()


def test_a_dataset_that_is_forgotten_ends_its_thread(server: Loader) -> None:
    batches = iter(RemoteDataset(server.url, batch_size=16))
    next(batches)
    assert network_threads()
    del batches
    gc.collect()
    wait_until(lambda: not network_threads(), what="the end of the network thread")


def test_an_exception_in_the_loop_leaves_nothing_once_the_block_is_left(server: Loader) -> None:
    def train() -> None:
        with RemoteDataset(server.url, batch_size=16) as dataset:
            for _ in dataset:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert not network_threads()


def test_closing_ends_the_thread_and_iterating_again_connects_anew(server: Loader) -> None:
    dataset = RemoteDataset(server.url, batch_size=64, info=True)
    first = keys(dataset)
    dataset.close()
    dataset.close()
    assert not network_threads()
    dataset.set_epoch(0)
    assert keys(dataset) == first
    dataset.close()


def test_endpoints_that_raise_in_mid_epoch_end_the_pass_with_their_error_and_the_next_pass_is_whole(
    server: Loader,
) -> None:
    wrong = False

    def endpoints() -> list[str]:
        if wrong:
            raise ConfigError("no such deployment")
        return [server.url]

    with RemoteDataset(endpoints, batch_size=16, prefetch_bytes=1, info=True) as dataset:
        batches = iter(dataset)
        next(batches)
        wrong = True
        wait_until(lambda: not network_threads(), what="the end of the network thread")
        with pytest.raises(ConfigError, match="no such deployment"):
            list(batches)
        wrong = False
        assert len(keys(dataset)) == SAMPLES


@pytest.mark.parametrize("prefetch_bytes", [1, 256 << 20], ids=["while_taking", "while_reading"])
def test_a_defect_of_the_client_in_mid_epoch_is_raised_and_never_looks_like_the_epochs_end(
    server: Loader, monkeypatch: pytest.MonkeyPatch, prefetch_bytes: int
) -> None:
    def deliver(step: Step, *rest: Any) -> Delivered:
        if step.number == 3:
            raise ZeroDivisionError
        return well(step, *rest)

    well = delivery.deliver
    monkeypatch.setattr(fetching, "deliver", deliver)
    with RemoteDataset(server.url, batch_size=16, prefetch_bytes=prefetch_bytes) as dataset:
        batches = iter(dataset)
        for _ in range(3):
            next(batches)
        with pytest.raises(ZeroDivisionError):
            next(batches)


def test_a_newer_iterator_ends_the_older(server: Loader) -> None:
    with RemoteDataset(server.url, batch_size=16) as dataset:
        older = iter(dataset)
        next(older)
        newer = iter(dataset)
        with pytest.raises(ConfigError, match=r"newer iter\(\) ended this iterator in mid-epoch"):
            next(older)
        assert list(older) == []
        del older  # leaves the connection to the newer one
        assert sum(len(labels) for _, labels in newer) == SAMPLES
        assert dataset.epoch == 1


def test_an_iterator_closed_in_mid_epoch_is_not_at_the_epochs_end(server: Loader) -> None:
    dataset = RemoteDataset(server.url, batch_size=16)
    under_way = iter(dataset)
    next(under_way)
    dataset.close()
    with pytest.raises(ClosedChannelError, match=r"close\(\) ended this iterator in mid-epoch"):
        next(under_way)
    with dataset:
        assert dataset.epoch == 0
        assert dataset.state_dict()["consumed"] == 16
        for number, _ in enumerate(dataset, start=1):
            if number == len(dataset):
                dataset.close()
        assert dataset.state_dict()["epoch"] == 1


@pytest.mark.timeout(60)
def test_a_pass_that_cannot_be_planned_raises_and_nobody_waits_for_it(
    server: Loader, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def locate(*_: object) -> None:
        raise RuntimeError("a defect of ours")

    monkeypatch.setattr(Plan, "locate", locate)
    with RemoteDataset(server.url, batch_size=16) as dataset, pytest.raises(RuntimeError, match="a defect of ours"):
        list(dataset)
    assert "this is a defect" in caplog.text


@pytest.mark.timeout(60)
def test_threads_that_share_an_iterator_take_each_batch_once_and_all_end(server: Loader) -> None:
    with RemoteDataset(server.url, batch_size=4, info=True) as dataset:
        shared = iter(dataset)
        with ThreadPoolExecutor(4) as threads:
            parts = list(threads.map(lambda _: [key for *_, info in shared for key in info.keys], range(4)))
        assert sorted(key for part in parts for key in part) == sorted(keys(dataset))


def test_the_epoch_advances_after_a_full_pass_alone(server: Loader) -> None:
    with RemoteDataset(server.url, batch_size=64, info=True) as dataset:
        assert dataset.epoch == 0
        first = keys(dataset)
        assert dataset.epoch == 1
        assert keys(dataset) != first
        dataset.set_epoch(0)
        assert keys(dataset) == first
        assert dataset.epoch == 1


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*use of fork\\(\\) may lead to deadlocks.*:DeprecationWarning")
def test_the_workers_of_a_dataloader_share_an_epoch(server: Loader, start: str) -> None:
    dataset = RemoteDataset(server.url, batch_size=16, info=True)
    alone = keys(dataset)  # a live connection in the parent, which workers must not touch
    dataset.set_epoch(0)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=start)
    assert [key for *_, info in loader for key in info.keys] == alone
    dataset.close()


def test_no_workers_inside_a_dataloader_is_the_same_as_no_dataloader(server: Loader) -> None:
    with RemoteDataset(server.url, batch_size=16, info=True) as dataset:
        alone = keys(dataset)
        dataset.set_epoch(0)
        assert [key for *_, info in DataLoader(dataset, batch_size=None) for key in info.keys] == alone


def _iterate_in_child(
    dataset: RemoteDataset, parents: Iterator[Any], answer: multiprocessing.queues.SimpleQueue[list[str]]
) -> None:
    with pytest.raises(ConfigError, match="this iterator is the parent's"):
        next(parents)  # for which it would wait for ever
    answer.put(keys(dataset))
    dataset.close()


@pytest.mark.filterwarnings("ignore:.*use of fork\\(\\) may lead to deadlocks.*:DeprecationWarning")
def test_a_fork_with_a_connection_open_has_its_own(server: Loader) -> None:
    context = multiprocessing.get_context("fork")
    with RemoteDataset(server.url, batch_size=16, info=True) as dataset:
        batches = iter(dataset)
        *_, first = next(batches)
        answer: multiprocessing.queues.SimpleQueue[list[str]] = context.SimpleQueue()
        child = context.Process(target=_iterate_in_child, args=(dataset, batches, answer))
        child.start()
        theirs = answer.get()
        child.join()
        answer.close()
        mine = first.keys + [key for *_, info in batches for key in info.keys]
    assert theirs == mine


def test_named_fields_come_as_dicts_with_a_transform_of_the_client(config: Path) -> None:
    def halve(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"image": batch["image"].float() / 2, "label": batch["label"]}

    with RemoteDataset(f"local:{config}", stream="train", batch_size=16, batch_transform=halve) as dataset:
        batch = next(iter(dataset))
    assert batch["image"].dtype == torch.float32
    assert batch["image"].shape == (16, 32, 32, 3)
    assert batch["label"].shape == (16,)


def test_a_private_server_ends_with_its_client(config: Path) -> None:
    with RemoteDataset(f"local:{config}", stream="train", batch_size=16) as dataset:
        batches = iter(dataset)
        next(batches)
        (private,) = [child for child in psutil.Process().children() if "--end-with" in child.cmdline()]
        family = [private, *private.children(recursive=True)]
        assert len(family) > 1
    wait_until(lambda: not any(process.is_running() for process in family), what="the end of the private server")


def test_a_private_server_ends_even_when_its_client_is_killed(config: Path, temporary_folder: Path) -> None:
    program = (
        "import sys, time\n"
        "from shardfeed import RemoteDataset\n"
        f"dataset = RemoteDataset('local:{config}', stream='train', batch_size=16)\n"
        "batches = iter(dataset)\n"
        "next(batches)\n"
        "print('first batch', flush=True)\n"
        "time.sleep(1000)\n"
    )
    client = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    with client.stdout as output:
        assert output.readline() == "first batch\n"
    family = psutil.Process(client.pid).children(recursive=True)
    assert family
    os.kill(client.pid, signal.SIGKILL)
    client.wait()
    wait_until(lambda: not any(child.is_running() for child in family), what="the end of the private server")
    wait_until(lambda: not list(temporary_folder.glob("shardfeed-*")), what="the removal of its socket")


def test_a_private_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    config = tmp_path / "shardfeed.toml"
    config.write_text('[streams.train]\nshards = "nowhere.tar"\nfields = "jpg cls"\n')
    from shardfeed import ConnectError

    with pytest.raises(ConnectError, match=r"nowhere\.tar"):
        iter(RemoteDataset(f"local:{config}", stream="train", batch_size=16))
    with pytest.raises(ConfigError, match="no configuration file"):
        iter(RemoteDataset("local:absent.toml", batch_size=16))


def test_an_interpreter_that_ends_without_closing_ends_quietly(server: Loader) -> None:
    program = (
        "from shardfeed import RemoteDataset\n"
        f"dataset = RemoteDataset('{server.url}', batch_size=16)\n"
        "batches = iter(dataset)\n"
        "print(len(next(batches)[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=40, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "16\n", "")


def test_ctrl_c_reaches_a_trainer_that_waits(shards: list[Path]) -> None:
    with Loader.of(shards, *OPTIONS) as server:
        program = (
            "from shardfeed import RemoteDataset\n"
            f"with RemoteDataset('{server.url}', batch_size=16, prefetch_bytes=1) as dataset:\n"
            "    batches = iter(dataset)\n"
            "    next(batches)\n"
            "    print('ready', flush=True)\n"
            "    for _ in batches: input()\n"
        )
        trainer = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == "ready\n"
        server.kill()
        assert trainer.stdin is not None
        trainer.stdin.write("\n" * 100)
        trainer.stdin.flush()
        assert trainer.stderr is not None
        assert "lost a server" in trainer.stderr.readline()
        trainer.send_signal(signal.SIGINT)
        _, errors = trainer.communicate(timeout=20)
        assert trainer.returncode != 0
        assert "KeyboardInterrupt" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"tail": "long"}, "tail='long'"),
        ({"tail": "pad", "drop_last": True}, "contradicts"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
        ({"framing": "two"}, "framing='two'"),
        ({"prefetch_bytes": 0}, "prefetch_bytes=0"),
        ({"seed": -1}, "seed=-1"),
        ({"lanes": 0}, "lanes=0"),
        ({"lanes": 1 << 70}, "lanes=1180591620717411303424"),
        ({"batch_size": 1.5}, "batch_size=1.5: it is a whole number, not float"),
        ({"batch_size": "32"}, "batch_size='32': it is a whole number"),
        ({"seed": None}, "seed=None: it is a whole number"),
        ({"timeout": None}, "timeout=None: it is seconds"),
        ({"connect_timeout": -1}, "connect_timeout=-1: it is seconds, and above 0"),
        ({"job": 3}, "job=3: it is text"),
        ({"device": "gpu"}, "device='gpu': it is 'cuda' or 'cpu'"),
        ({"batch_transform": "halve"}, "batch_transform='halve': it is a function"),
    ],
)
def test_an_argument_that_makes_no_sense_is_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RemoteDataset("tcp://127.0.0.1:7880", **{"batch_size": 16, **arguments})


def test_pinned_memory_without_an_accelerator_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = getattr(torch, "accelerator", torch.cuda)
    monkeypatch.setattr(accelerator, "is_available", lambda: False)  # as on most machines that run this
    with pytest.raises(ConfigError, match="pin_memory=True: torch finds no accelerator here; leave it out"):
        RemoteDataset("tcp://127.0.0.1:7880", batch_size=16, pin_memory=True)


@pytest.mark.parametrize("endpoints", [None, 7880, ["tcp://127.0.0.1:7880", None]])
def test_endpoints_that_are_none_are_said(endpoints: object) -> None:
    with pytest.raises(EndpointError, match="write one URL or a list of them"):
        RemoteDataset(endpoints, batch_size=16)


def test_numbers_of_numpy_are_as_good_as_pythons(server: Loader) -> None:
    number = np.int64
    options = {"batch_size": number(16), "seed": number(3), "lanes": number(8), "rank": number(1)}
    with (
        RemoteDataset(server.url, world_size=number(2), **options) as numpys,
        RemoteDataset(server.url, world_size=2, **{name: int(value) for name, value in options.items()}) as pythons,
    ):
        assert len(list(numpys)) == len(list(pythons)) == 8
        assert (numpys.digest, numpys.state_dict()) == (pythons.digest, pythons.state_dict())
        json.dumps(numpys.state_dict())


@pytest.mark.parametrize(
    ("variables", "message"),
    [({"RANK": "2", "WORLD_SIZE": "2"}, "rank=2"), ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK and WORLD_SIZE")],
)
def test_ranks_that_make_no_sense_are_named(
    server: Loader, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with RemoteDataset(server.url, batch_size=16) as dataset, pytest.raises(ConfigError, match=message):
        iter(dataset)


def test_the_rank_is_read_from_the_environment_at_the_first_iter(
    server: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RemoteDataset(server.url, batch_size=16, info=True) as dataset:
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        second = keys(dataset)
    with RemoteDataset(server.url, batch_size=16, rank=0, world_size=2, info=True) as dataset:
        first = keys(dataset)
    assert len(first) == len(second) == SAMPLES // 2
    assert not set(first) & set(second)
