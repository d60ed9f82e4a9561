"""The HTTP port of real servers: it says that they live, whether they serve, and what they have done."""

from __future__ import annotations

import contextlib
import http.client
import re
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from shardfeed import RemoteDataset
from tests.photographs import write_shards
from tests.system.loaders import Loader, wait_until

SAMPLES = 60

HELD_UP = """
import pathlib, time

HERE = pathlib.Path(__file__).parent


def held_up(name):
    while not (HERE / name).exists():
        time.sleep(0.02)


held_up("loaded")


def transform(sample):
    if sample["cls"] == 59:
        held_up("served")
    if sample["cls"] == 7 and not (HERE / "healed").exists():
        raise ValueError("bad")
    return sample
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("http")
    (folder / "waits.py").write_text(HELD_UP)
    samples = [(f"{n:03d}", {"txt": b"some text", "cls": b"%d" % n}) for n in range(SAMPLES)]
    return write_shards(folder, samples, 2)


@pytest.fixture(autouse=True)
def nothing_is_held_up_at_first(shards: list[Path]) -> Iterator[Path]:
    folder = shards[0].parent
    names = ("loaded", "served", "healed")
    yield folder
    for name in names:
        (folder / name).unlink(missing_ok=True)


def serving(shards: list[Path], *options: str, wait: bool = True) -> Loader:
    options = ("--workers", "1", "--code-dir", str(shards[0].parent), *options)
    return Loader([*shards, "--fields", "txt cls", *options, "--bind", "tcp://127.0.0.1:0"], wait=wait)


def port(loader: Loader) -> str:
    (url,) = re.findall(r"^health and figures: (http://\S+?)/healthz", loader.output, re.MULTILINE)
    return str(url)


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def metrics(url: str) -> dict[tuple[str, tuple[str, ...]], float]:
    status, text = get(f"{url}/metrics")
    assert status == 200
    return {
        (each.name, tuple(each.labels.values())): each.value
        for family in text_string_to_metric_families(text)
        for each in family.samples
    }


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        number: int = found.getsockname()[1]
        return number


@pytest.mark.timeout(120)
def test_a_server_lives_before_it_is_ready_and_is_not_ready_while_it_drains(
    shards: list[Path], nothing_is_held_up_at_first: Path
) -> None:
    folder, where = nothing_is_held_up_at_first, f"127.0.0.1:{free_port()}"
    url = f"http://{where}"

    def lives() -> bool:
        try:
            return get(f"{url}/healthz") == (200, "alive\n")
        except OSError:
            return False

    with serving(shards, "--transform", "waits:transform", "--http", where, wait=False) as loader:
        wait_until(lives, 40, what="the first sign of life")
        status, reason = get(f"{url}/readyz")
        assert status == 503
        assert "indexing" in reason or "start" in reason
        assert metrics(url)["shardfeed_ready", ()] == 0
        (folder / "loaded").touch()
        loader.wait_ready()
        assert port(loader) == url
        assert get(f"{url}/readyz") == (200, "ready\n")
        assert metrics(url)["shardfeed_ready", ()] == 1

        with RemoteDataset(loader.url, batch_size=SAMPLES, job="held up", on_error="mask") as dataset:
            batches = iter(dataset)  # asks for the sample that is held up
            wait_until(lambda: metrics(url).get(("shardfeed_unsent_bytes", ()), 0) > 0, what="the request's arrival")
            loader.tell(signal.SIGTERM)
            wait_until(lambda: get(f"{url}/readyz") == (503, "draining\n"), what="draining")
            assert get(f"{url}/healthz")[0] == 200
            (folder / "served").touch()
            next(batches)
        assert loader.wait() == 0


def test_what_a_job_got_is_counted(shards: list[Path], nothing_is_held_up_at_first: Path) -> None:
    for name in ("loaded", "served"):
        (nothing_is_held_up_at_first / name).touch()
    everywhere = "[::]:0" if socket.has_dualstack_ipv6() else "0.0.0.0:0"
    with serving(shards, "--transform", "waits:transform", "--http", everywhere, "--http-public") as loader:
        url, labels = f"http://127.0.0.1:{port(loader).rpartition(':')[2]}", ("default", "my job")
        with RemoteDataset(loader.url, batch_size=8, job="my job", on_error="mask", rank=1, world_size=2) as dataset:
            rows = sum(len(texts) for texts, _ in dataset)
            stats = dataset.stats
            found = metrics(url)
        # Some batches of the next epoch are made ahead; the bad sample may be in one.
        ahead = 8 * (found["shardfeed_batches_total", labels] - stats.steps)
        masked = found["shardfeed_masked_rows_total", labels]
        assert found["shardfeed_samples_total", labels] + masked == rows + ahead
        assert masked == stats.masked or (ahead > 0 and masked == stats.masked + 1)
        assert found["shardfeed_clients", ("my job",)] == 1
        assert found["shardfeed_sent_bytes_total", labels] > stats.bytes > 0
        assert found["shardfeed_cpu_seconds_total", labels] > 0
        answers = found["shardfeed_batches_total", labels]
        assert answers >= stats.steps
        for phase in ("waiting", "reading", "decoding", "collating", "sending"):
            assert found[f"shardfeed_{phase}_seconds_count", labels] == answers
        assert found["shardfeed_worker_deaths_total", ()] == 0

        loader.workers()[0].kill()
        wait_until(lambda: metrics(url)["shardfeed_worker_deaths_total", ()] == 1, what="the death's being counted")


def test_many_connections_that_say_nothing_cost_few_descriptors_and_keep_nobody_from_an_answer(
    shards: list[Path], nothing_is_held_up_at_first: Path
) -> None:
    (nothing_is_held_up_at_first / "loaded").touch()
    with serving(shards, "--http", f"127.0.0.1:{free_port()}") as loader, contextlib.ExitStack() as stack:
        url = port(loader)
        server = psutil.Process(loader.process.pid)
        assert get(f"{url}/metrics")[0] == 200
        before = server.num_fds()
        host, _, number = url.removeprefix("http://").partition(":")

        def connect(said: bytes) -> socket.socket:
            connection = stack.enter_context(socket.create_connection((host, int(number)), timeout=20))
            connection.sendall(said)
            return connection

        # Some say nothing, some break off in the middle of a request, some keep what they had an answer on.
        for said in (b"", b"GET /metr", b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"):
            silent = [connect(said) for _ in range(100)]
            assert get(f"{url}/healthz") == (200, "alive\n")
            assert silent[0].recv(1 << 16) == b"" or said.endswith(b"\n\r\n")  # it made way for the others
        wait_until(lambda: server.num_fds() <= before + 64, what="the end of most of 300 connections")

        # One that goes on asking stays, whoever else comes.
        kept = http.client.HTTPConnection(host, int(number), timeout=20)
        with contextlib.closing(kept):
            for _ in range(30):
                kept.request("GET", "/readyz")
                assert kept.getresponse().read() == b"ready\n"
                same = kept.sock
                for _ in range(5):
                    connect(b"")
                kept.auto_open = 0  # from now on it would not be made anew
            assert kept.sock is same


def test_who_speaks_no_http_is_refused_without_a_word_in_the_log(shards: list[Path]) -> None:
    with serving(shards, "--http", "127.0.0.1:0") as loader:
        url, before = port(loader), len(loader.lines)
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 20) as guest:
                guest.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
                assert b"400 Bad Request" in guest.recv(1000)
        assert get(f"{url}/healthz") == (200, "alive\n")
        assert loader.lines[before:] == []


def test_a_second_server_takes_another_port_and_says_so_and_one_that_is_told_which_does_not_start(
    shards: list[Path],
) -> None:
    # Somebody has the usual port: we, or another server of this machine.
    try:
        taken = socket.create_server(("127.0.0.1", 9880))
    except OSError:
        taken = socket.socket()
    with (
        taken,
        Loader([*shards, "--fields", "txt cls", "--workers", "1", "--bind", "tcp://127.0.0.1:0"], http=None) as one,
    ):
        assert "the usual HTTP port is taken" in one.output
        assert get(f"{port(one)}/readyz")[0] == 200
        told = port(one).removeprefix("http://")
        with serving(shards, "--http", told, wait=False) as two:
            assert two.wait() == 1
        assert f"http: cannot listen on {told}: Address already in use" in two.output
        assert "--http off" in two.output
