"""Plain streams between `PlainSender` and `PlainDataset`, over real sockets: what arrives, what waits, what is lost."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zmq
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from shardfeed import (
    ClosedChannelError,
    ConfigError,
    EndpointError,
    PlainDataset,
    PlainSender,
    StarvedError,
    TenbinError,
)
from shardfeed_wire.tenbin import encode_buffer, encode_list
from tests.system.loaders import wait_until

IMAGES = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
LABELS = np.array([3, -1], np.int64)
PATIENCE = 40.0


def batch(number: int, size: int = 2) -> list[Any]:
    """A batch that says which it is."""
    return [np.full((size, 4), number, np.float32), torch.full((size,), number)]


def numbers(batches: Iterator[Any], count: int) -> list[int]:
    """Take ``count`` batches, and say which they are."""
    return [int(next(batches)[1][0]) for _ in range(count)]


def opened(dataset: PlainDataset) -> Iterator[Any]:
    """Begin a pass, so that a URL which binds is bound; `dataset.urls` then tells the port."""
    return iter(dataset)


def reversed_url(url: str) -> str:
    """The URL of the other side."""
    scheme, _, rest = url.partition("://")
    name, plus, carrier = scheme.partition("+")
    other = {"push": "pull", "pull": "push", "pub": "sub", "sub": "pub"}[name.removeprefix("z").removeprefix("r")]
    return f"z{'r' if name.startswith('zr') else ''}{other}{plus}{carrier}://{rest}"


# ------------------------------------------------------------------------------------ there and back


@pytest.mark.parametrize("framing", ["multipart", "single"])
@pytest.mark.parametrize("carrier", ["tcp", "ipc"])
@pytest.mark.parametrize("binds", ["sender", "receiver"])
def test_pushed_batches_arrive_whole_and_in_order_with_their_dtypes_and_names(
    framing: Any, carrier: str, binds: str, temporary_folder: Path
) -> None:
    where = "127.0.0.1:0" if carrier == "tcp" else f"{temporary_folder}/feed"
    plus = "" if carrier == "tcp" else "+ipc"
    large = np.arange(3 * 100_000, dtype=np.int16).reshape(3, 100_000)
    options = {"framing": framing, "timeout": PATIENCE}
    if binds == "receiver":
        dataset = PlainDataset(f"zpull{plus}://{where}", infos=True, **options)
        arriving = iter(dataset)
        sender = PlainSender(reversed_url(dataset.urls[0]), infos=["image", "label", "x"], **options)
    else:
        sender = PlainSender(f"zrpush{plus}://{where}", infos=["image", "label", "x"], **options)
        dataset = PlainDataset(reversed_url(sender.urls[0]), infos=True, **options)
        arriving = iter(dataset)
    with dataset, sender:
        for number in range(3):
            sender.send([IMAGES + number, torch.from_numpy(LABELS), large])
            (images, labels, wide), names = next(arriving)
            assert names == ["image", "label", "x"]
            assert torch.equal(images, torch.from_numpy(IMAGES + number))
            assert (labels.dtype, labels.tolist()) == (torch.int64, [3, -1])
            assert torch.equal(wide, torch.from_numpy(large))
            images[0] = 0  # whatever the tensor lies in, it is the trainer's
        assert (sender.sent, sender.dropped, dataset.received, dataset.skipped) == (3, 0, 3, 0)
    assert not (temporary_folder / "feed").exists()


@pytest.mark.parametrize("binds", ["sender", "receiver"])
def test_published_batches_reach_every_subscriber(binds: str, temporary_folder: Path) -> None:
    if binds == "sender":
        sender = PlainSender("zpub://127.0.0.1:0", high_water=50)
        sets = [PlainDataset(reversed_url(sender.urls[0]), high_water=50, timeout=PATIENCE) for _ in range(2)]
        passes = [iter(dataset) for dataset in sets]
    else:
        sets = [PlainDataset("zrsub://127.0.0.1:0", high_water=50, timeout=PATIENCE) for _ in range(2)]
        passes = [iter(dataset) for dataset in sets]
        sender = PlainSender([reversed_url(dataset.urls[0]) for dataset in sets], high_water=50)
    with sender, sets[0], sets[1]:
        with Sending(sender):
            got = [numbers(one, 10) for one in passes]
        for series in got:
            assert series == list(range(series[0], series[0] + 10))  # from some batch on, every one


class Sending:
    """A thread that sends numbered batches for as long as the block lasts, whether somebody takes them or not."""

    def __init__(self, sender: PlainSender) -> None:
        self._sender = sender
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(0.005):
            with contextlib.suppress(StarvedError):
                self._sender.send(batch(number))
                number += 1

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_a_brace_list_is_several_sockets_and_all_of_them_are_used() -> None:
    dataset = PlainDataset("zpull://127.0.0.{1..3}:0", timeout=PATIENCE)
    arriving = opened(dataset)
    assert len(dataset.urls) == 3
    with dataset:
        with PlainSender([reversed_url(url) for url in dataset.urls], timeout=PATIENCE) as sender:
            sender.send_all(batch(number) for number in range(12))
            assert sorted(numbers(arriving, 12)) == list(range(12))
        for url in dataset.urls:  # and one alone is heard as well
            with PlainSender(reversed_url(url), timeout=PATIENCE) as sender:
                sender.send(batch(99))
                assert numbers(arriving, 1) == [99]


def test_a_dataloader_becomes_a_server_in_three_lines_and_dicts_bring_their_names() -> None:
    loader = DataLoader(TensorDataset(torch.arange(10.0), torch.arange(10)), batch_size=4)
    with PlainDataset("zpull://127.0.0.1:0", length=3, timeout=PATIENCE) as dataset:
        opened(dataset)
        with PlainSender(reversed_url(dataset.urls[0])) as sender:
            sender.send_all(loader)
        assert [labels.tolist() for _, labels in dataset] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    with PlainDataset("zpull://127.0.0.1:0", infos=["a", "b"], timeout=PATIENCE) as dataset:
        arriving = opened(dataset)
        with PlainSender(reversed_url(dataset.urls[0]), infos=True) as sender:
            sender.send({"a": IMAGES, "b": LABELS})
            assert len(next(arriving)) == 2
            sender.send({"b": IMAGES, "a": LABELS})
            with pytest.raises(TenbinError, match=r"named \['b', 'a'\], not \['a', 'b'\]"):
                next(arriving)


def test_what_was_sent_last_arrives_though_the_sender_closes_at_once() -> None:
    with PlainDataset("zpull://127.0.0.1:0", length=4, timeout=PATIENCE) as dataset:
        opened(dataset)
        with PlainSender(reversed_url(dataset.urls[0])) as sender:
            sender.send_all([np.full(3_000_000, number, np.uint8)] for number in range(4))
        assert [int(array[-1]) for (array,) in dataset] == [0, 1, 2, 3]


# ------------------------------------------------------------------------------------ waiting and losing


def test_a_push_waits_for_a_receiver_and_says_so_after_its_timeout() -> None:
    with PlainSender("zrpush://127.0.0.1:0", timeout=0.3) as sender:
        with pytest.raises(StarvedError, match=r"waited 0\.3 s for a receiver .*zrpush://127\.0\.0\.1:\d+"):
            sender.send(batch(0))
        assert sender.sent == 0


def test_a_receiver_that_stops_holds_a_push_back_within_the_high_water_marks() -> None:
    dataset = PlainDataset("zpull://127.0.0.1:0", high_water=2, timeout=PATIENCE)
    arriving = opened(dataset)
    with dataset, PlainSender(reversed_url(dataset.urls[0]), high_water=2, timeout=1.0) as sender:
        large = np.zeros(8_000_000, np.uint8)  # more than the kernel keeps for a connection
        with pytest.raises(StarvedError):
            for _ in range(100):
                sender.send([large])
        held = sender.sent
        assert held < 20
        for _ in range(held):
            next(arriving)
        sender.send(batch(7))
        assert numbers(arriving, 1) == [7]


def test_a_push_to_several_goes_to_those_that_are_there() -> None:
    with PlainDataset("zpull://127.0.0.1:0", timeout=PATIENCE) as gone:
        opened(gone)
        nobody = reversed_url(gone.urls[0])
    with PlainDataset("zpull://127.0.0.1:0", timeout=PATIENCE) as dataset:
        arriving = opened(dataset)
        with PlainSender([nobody, reversed_url(dataset.urls[0])], timeout=PATIENCE) as sender:
            for number in range(20):
                sender.send(batch(number))
                assert numbers(arriving, 1) == [number]


def test_a_pub_without_subscribers_drops_and_counts() -> None:
    with PlainSender("zpub://127.0.0.1:0") as sender:
        for number in range(5):
            sender.send(batch(number))
        assert (sender.sent, sender.dropped) == (5, 5)


def test_a_slow_subscriber_loses_batches_that_are_counted_and_a_fast_one_loses_none() -> None:
    with PlainSender("zpub://127.0.0.1:0", high_water=4) as sender:
        url = reversed_url(sender.urls[0])
        slow = PlainDataset(url, high_water=1, timeout=PATIENCE)
        fast = PlainDataset(url, high_water=1, timeout=PATIENCE)
        with slow, fast:
            slowly, quickly = opened(slow), opened(fast)
            with Sending(sender):  # until both have subscribed
                numbers(slowly, 1), numbers(quickly, 1)
            before = sender.dropped
            large = np.zeros(4_000_000, np.uint8)
            for number in range(40):
                sender.send([large, np.array([number + 1_000])])
                while (got := int(next(quickly)[1][0])) < 1_000:
                    pass  # what was published before
                assert got == number + 1_000
            assert 0 < sender.dropped - before <= 40


def test_nothing_that_arrives_is_an_error_after_the_timeout_with_the_endpoints_in_it() -> None:
    endpoints = r"a batch from zpull://127\.0\.0\.1:\d+, zpull://127\.0\.0\.2:\d+"
    with (
        PlainDataset("zpull://127.0.0.{1,2}:0", timeout=0.2) as dataset,
        pytest.raises(StarvedError, match=endpoints),
    ):
        next(iter(dataset))


def test_a_pass_has_its_length_and_the_next_goes_on() -> None:
    with PlainDataset("zpull://127.0.0.1:0", length=2, timeout=PATIENCE) as dataset:
        assert len(dataset) == 2
        opened(dataset)
        with PlainSender(reversed_url(dataset.urls[0])) as sender:
            sender.send_all(batch(number) for number in range(4))
            assert [int(labels[0]) for _, labels in dataset] == [0, 1]
            assert [int(labels[0]) for _, labels in dataset] == [2, 3]
        arriving = iter(dataset)
        dataset.close()
        assert list(arriving) == []
    with pytest.raises(TypeError, match="no length"):
        len(PlainDataset("zpull://127.0.0.1:0"))


# ------------------------------------------------------------------------------------ hostile and wrong


def hostile(url: str) -> zmq.Socket[bytes]:
    """A sender that says what it likes."""
    socket = zmq.Context.instance().socket(zmq.PUSH)
    socket.linger = 0
    socket.connect(url.replace("zpull", "tcp"))
    return socket


GARBAGE = {
    "noise": [b"\xff" * 100, b"\0" * 50],
    "half": encode_list([IMAGES, LABELS])[:3],
    "short": [encode_list([IMAGES])[0], b"1234"],
    "huge": [b"u1\0\0\0\0\0\0" + bytes(8) + (2).to_bytes(8, "little") + (1 << 62).to_bytes(8, "little") * 2, b""],
    "one": [encode_buffer([IMAGES])],
    "frames": [b""] * 5_000,
}


@pytest.mark.parametrize("name", GARBAGE)
def test_what_is_no_batch_is_raised_with_the_endpoint_and_the_pass_can_go_on(name: str) -> None:
    with PlainDataset("zpull://127.0.0.1:0", timeout=PATIENCE) as dataset:
        arriving = opened(dataset)
        with hostile(dataset.urls[0]) as socket:
            socket.send_multipart(GARBAGE[name])
            with pytest.raises(TenbinError, match=rf"{dataset.urls[0]} \(from 127\.0\.0\.1\)"):
                next(arriving)
            socket.send_multipart(encode_list(batch(5)))
            assert numbers(arriving, 1) == [5]


def test_single_framing_raises_what_is_no_batch_too() -> None:
    with PlainDataset("zpull://127.0.0.1:0", framing="single", timeout=PATIENCE) as dataset:
        arriving = opened(dataset)
        with hostile(dataset.urls[0]) as socket:
            for message in ([b"~TenBin~" + b"\xff" * 8], [b"x"], encode_list([IMAGES])):
                socket.send_multipart(message)
                with pytest.raises(TenbinError, match="sent what is no batch"):
                    next(arriving)


def test_on_error_skip_leaves_garbage_out_counts_it_and_logs_the_first(caplog: pytest.LogCaptureFixture) -> None:
    with PlainDataset("zpull://127.0.0.1:0", on_error="skip", timeout=PATIENCE) as dataset:
        arriving = opened(dataset)
        with hostile(dataset.urls[0]) as socket, caplog.at_level(logging.WARNING, "shardfeed"):
            for message in (GARBAGE["noise"], GARBAGE["half"], encode_list(batch(8))):
                socket.send_multipart(message)
            assert numbers(arriving, 1) == [8]
        assert dataset.skipped == 2
        assert caplog.text.count("skipped a message") == 1


def test_who_sends_a_frame_above_the_bound_is_cut_off_and_others_are_not() -> None:
    with PlainDataset("zpull://127.0.0.1:0", frame_bytes=100_000, timeout=PATIENCE) as dataset:
        arriving = opened(dataset)
        with hostile(dataset.urls[0]) as bad, hostile(dataset.urls[0]) as good:
            bad.send_multipart(encode_list([np.zeros(200_000, np.uint8)]))
            good.send_multipart(encode_list(batch(4)))
            assert numbers(arriving, 1) == [4]


def test_what_tenbin_cannot_hold_is_refused_with_the_endpoint() -> None:
    with (
        PlainSender("zpub://127.0.0.1:0", infos=["much too long", "b"]) as sender,
        pytest.raises(TenbinError, match=r"zpub://127\.0\.0\.1.*at most 8 ASCII"),
    ):
        sender.send(batch(0))
    with PlainSender("zpub://127.0.0.1:0") as sender:
        for wrong, why in ((["text"], "no code"), ([torch.ones(2).bool()], "no code"), ([], "no arrays")):
            with pytest.raises(TenbinError, match=why):
                sender.send(wrong)


def test_a_closed_sender_says_so_and_wrong_arguments_are_named() -> None:
    sender = PlainSender("zpub://127.0.0.1:0")
    sender.close()
    sender.close()
    with pytest.raises(ClosedChannelError):
        sender.send(batch(0))
    for wrong in ({"framing": "both"}, {"high_water": 0}, {"timeout": 0}, {"timeout": float("inf")}):
        name = next(iter(wrong))
        with pytest.raises(ConfigError, match=name):
            PlainSender("zpub://127.0.0.1:0", **wrong)
        with pytest.raises(ConfigError, match=name):
            PlainDataset("zpull://127.0.0.1:0", **wrong)
    for wrong in ({"length": -1}, {"length": 1.5}, {"on_error": "mask"}, {"frame_bytes": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            PlainDataset("zpull://127.0.0.1:0", **wrong)
    with pytest.raises(ConfigError, match="infos=True"), PlainSender("zpub://127.0.0.1:0", infos=True) as sender:
        sender.send(batch(0))


def test_an_address_that_others_reach_is_bound_only_where_that_is_meant() -> None:
    with pytest.raises(ConfigError, match=r"zpub://0\.0\.0\.0:0.*insecure"):
        PlainSender("zpub://0.0.0.0:0")
    with pytest.raises(ConfigError, match=r"zpull://0\.0\.0\.0:0.*insecure"):
        iter(PlainDataset("zpull://0.0.0.0:0"))
    PlainSender("zpub://0.0.0.0:0", insecure=True).close()


def test_an_address_in_use_is_an_error_that_names_it_and_leaves_nothing() -> None:
    with (
        PlainSender("zrpush://127.0.0.1:0") as sender,
        pytest.raises(EndpointError, match=f"cannot bind {sender.urls[0]}"),
    ):
        PlainSender(["zrpush://127.0.0.1:0", sender.urls[0]])


def test_a_path_in_use_stays_its_owners(temporary_folder: Path) -> None:
    feed, file = temporary_folder / "feed", temporary_folder / "labels.json"
    file.write_text("{}")
    before = os.umask(0)
    try:
        with PlainDataset(f"zpull+ipc://{feed}", timeout=PATIENCE) as dataset:
            arriving = iter(dataset)
            assert feed.stat().st_mode & 0o777 == 0o770
            for path in (feed, file):
                with pytest.raises(EndpointError, match=f"cannot bind zpull\\+ipc://{path}"):
                    iter(PlainDataset(f"zpull+ipc://{path}"))
            with PlainSender(f"zpush+ipc://{feed}", timeout=PATIENCE) as sender:
                sender.send(batch(7))
            assert next(arriving)
    finally:
        os.umask(before)
    assert file.read_text() == "{}"
    file.unlink()


# ------------------------------------------------------------------------------------ DataLoader, forks, ends


def test_a_data_set_that_is_pickled_or_garbage_leaves_its_sockets_behind() -> None:
    dataset = PlainDataset("zpull://127.0.0.1:0", timeout=PATIENCE)
    arriving = opened(dataset)
    copy = pickle.loads(pickle.dumps(dataset))
    with PlainSender(reversed_url(dataset.urls[0])) as sender:
        sender.send(batch(1))
        assert numbers(arriving, 1) == [1]
    assert copy.urls == ["zpull://127.0.0.1:0"]
    opened(copy)
    # and both are garbage now: the fixture of all tests sees whether anything is left


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12 and newer, of every fork with threads
@pytest.mark.timeout(120)
def test_workers_of_a_dataloader_open_their_own_sockets_and_share_the_length(method: str) -> None:
    with PlainSender("zrpush://127.0.0.1:0", timeout=0.2) as sender:
        dataset = PlainDataset(reversed_url(sender.urls[0]), length=5, timeout=PATIENCE)
        loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=method)
        with Sending(sender):
            assert numbers(opened(dataset), 1) == [0]  # the parent's own sockets, which a fork must leave alone
            dataset.close()
            assert sum(1 for _ in loader) == 5


class ErrorOf(IterableDataset[str]):
    """Begins to iterate a data set, and yields its error: one raised in a worker costs torch 5 s for each worker."""

    def __init__(self, dataset: PlainDataset) -> None:
        self._dataset = dataset

    def __iter__(self) -> Iterator[str]:
        try:
            iter(self._dataset)
        except ConfigError as error:
            yield str(error)


@pytest.mark.parametrize(
    ("url", "why"), [("zpull://127.0.0.1:0", "bind it"), ("zsub://127.0.0.1:1", "get every batch")]
)
def test_more_workers_than_urls_are_refused_where_batches_would_come_twice_or_nobody_could_bind(
    url: str, why: str
) -> None:
    said = list(DataLoader(ErrorOf(PlainDataset(url)), batch_size=None, num_workers=2))
    assert len(said) == 2
    assert all(f"2 workers of a DataLoader would each {why}" in text and url in text for text in said)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_leaves_the_parents_sockets_alone() -> None:
    def child_s() -> None:
        with pytest.raises(ConfigError, match="this pass is the parent's"):
            next(arriving)
        dataset.close()

    with PlainSender("zrpush://127.0.0.1:0", timeout=PATIENCE) as sender:
        dataset = PlainDataset(reversed_url(sender.urls[0]), timeout=PATIENCE)
        with dataset:
            arriving = opened(dataset)
            child = multiprocessing.get_context("fork").Process(target=child_s)
            child.start()
            child.join(PATIENCE)
            assert child.exitcode == 0
            child.close()
            sender.send(batch(3))
            assert numbers(arriving, 1) == [3]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_may_not_send_by_its_parent_s_sender_and_is_told_so() -> None:
    def send() -> None:
        try:
            sender.send(batch(9))
        except ConfigError as error:
            said.send(str(error))

    with PlainSender("zrpush://127.0.0.1:0", timeout=PATIENCE) as sender:
        heard, said = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(target=send)
        child.start()
        said.close()
        assert heard.poll(PATIENCE)
        text = heard.recv()
        heard.close()
        child.join(PATIENCE)
        assert child.exitcode == 0
        child.close()
        assert "zrpush://127.0.0.1:0 belongs to the process that made it" in text
        assert "make one in each process that sends" in text
        with PlainDataset(reversed_url(sender.urls[0]), timeout=PATIENCE) as dataset:
            arriving = opened(dataset)
            sender.send(batch(3))
            assert numbers(arriving, 1) == [3]  # the parent's still works, and the fork's never arrived


def send_for_ever(url: str) -> None:
    """Send batches until killed, so large that most of the time one is under way."""
    with PlainSender(url, timeout=PATIENCE, high_water=1) as sender:
        while True:
            sender.send([np.zeros(20_000_000, np.uint8), np.zeros(1)])


def test_a_sender_killed_while_it_sends_is_survived_and_another_is_heard() -> None:
    with PlainDataset("zpull://127.0.0.1:0", timeout=PATIENCE, high_water=1) as dataset:
        arriving = opened(dataset)
        url = reversed_url(dataset.urls[0])
        child = multiprocessing.get_context("spawn").Process(target=send_for_ever, args=(url,))
        child.start()
        numbers(arriving, 3)
        child.kill()
        child.join(PATIENCE)
        child.close()
        with PlainSender(url, timeout=PATIENCE) as sender:
            sender.send(batch(-1))
            wait_until(lambda: numbers(arriving, 1) == [-1], PATIENCE)
