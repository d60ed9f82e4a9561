"""Counting: what clients call themselves changes neither what memory it takes nor what a scrape can read."""

from __future__ import annotations

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shardfeed_server.clients import Clients
from shardfeed_server.exposition import expose
from shardfeed_server.figures import OTHERS, Figures, Standing, Work
from shardfeed_wire.messages import Seconds, Waited

HOSTILE = [
    'quote " and \\',
    "line\nbreak",
    "zero\0",
    "bell\a\r",
    "{job='x'} 1\n# HELP x",
    "ünïcode ✓",
    "",
    "\u2028",
    OTHERS,
]


def answer(figures: Figures, job: str, *, now: float = 0.0, stream: str = "train") -> None:
    work = Work(seconds=Seconds(waiting=0.002, decoding=0.2), cpu=0.1, masked=1)
    figures.answered(stream, job, rows=8, size=1_000, work=work, sending=100.0, now=now)


def scraped(figures: Figures, clients: tuple[str, ...] = ()) -> dict[tuple[str, tuple[str, ...]], float]:
    """What a scrape reads: values by name and the values of its labels, which come in their alphabet."""
    standing = Standing(name="s", software="v", ready=True, workers=1, queued=0, unsent=0, kept=0, clients=clients)
    families = text_string_to_metric_families(expose(standing, figures).decode())
    return {(each.name, tuple(each.labels.values())): each.value for family in families for each in family.samples}


def test_an_answer_is_counted_where_it_belongs() -> None:
    figures = Figures()
    answer(figures, "mine")
    answer(figures, "mine")
    answer(figures, "mine", stream="val")
    found = scraped(figures)
    assert found["shardfeed_samples_total", ("train", "mine")] == 14
    assert found["shardfeed_masked_rows_total", ("train", "mine")] == 2
    assert found["shardfeed_batches_total", ("val", "mine")] == 1
    assert found["shardfeed_cpu_seconds_total", ("train", "mine")] == pytest.approx(0.2)
    name = "shardfeed_decoding_seconds_bucket"
    buckets = {labels[0]: n for (each, labels), n in found.items() if each == name and labels[1] == "val"}
    assert (buckets["0.1"], buckets["0.25"], buckets["+Inf"]) == (0, 1, 1)
    assert found["shardfeed_sending_seconds_bucket", ("60.0", "train", "mine")] == 0
    assert found["shardfeed_sending_seconds_bucket", ("+Inf", "train", "mine")] == 2
    assert found["shardfeed_sending_seconds_count", ("train", "mine")] == 2


@pytest.mark.parametrize("job", HOSTILE)
def test_whatever_a_job_is_called_the_exposition_can_be_read(job: str) -> None:
    figures = Figures()
    answer(figures, job)
    answer(figures, "honest")
    figures.waited(job, 3, Waited(steps=1, wire=2.0), 0.0)
    found = scraped(figures, clients=(figures.label(job, 0.0),))
    assert found["shardfeed_samples_total", ("train", "honest")] == 7
    assert sum(value for (name, _), value in found.items() if name == "shardfeed_samples_total") == 14
    assert sum(value for (name, _), value in found.items() if name == "shardfeed_trainer_steps_total") == 1


def test_many_jobs_ranks_and_long_names_take_bounded_memory() -> None:
    figures = Figures()
    for number in range(5_000):
        answer(figures, f"{'x' * number}{number}")
        figures.waited(f"job {number % 3}", number, Waited(steps=1), 0.0)
    assert len(figures.served) <= 65
    assert len(figures.trainers) <= 1_024 + 65
    assert all(len(job) <= 100 for _, job in figures.served)
    assert sum(each.batches for each in figures.served.values()) == 5_000
    assert sum(each.steps for each in figures.trainers.values()) == 5_000
    assert figures.served["train", OTHERS].batches > 4_000


def test_a_job_that_is_gone_is_forgotten_and_makes_room() -> None:
    figures = Figures()
    for number in range(64):
        answer(figures, f"old {number}")
    answer(figures, "old 0", now=599.0)
    answer(figures, "new", now=601.0)
    assert set(figures.snapshot(601.0).served) == {("train", "old 0"), ("train", "new")}


def test_a_snapshot_does_not_change_any_more() -> None:
    figures = Figures()
    answer(figures, "mine")
    figures.waited("mine", 0, Waited(steps=1, wire=1.0), 0.0)
    copied = figures.snapshot(0.0)
    before = scraped(copied)
    answer(figures, "mine")
    figures.waited("mine", 0, Waited(steps=1, wire=1.0), 0.0)
    figures.request_failed("failed")
    figures.worker_died()
    ours = {key: value for key, value in scraped(copied).items() if key[0].startswith("shardfeed")}
    assert ours == {key: value for key, value in before.items() if key[0].startswith("shardfeed")}


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 1e9])
def test_what_no_honest_trainer_tells_is_left_out(value: float) -> None:
    figures = Figures()
    figures.waited("job", 0, Waited(steps=1, wire=value), 0.0)
    assert not figures.trainers


def test_clients_are_counted_while_they_are_heard_and_their_names_are_bounded() -> None:
    clients = Clients()
    clients.greet(b"a", "job" * 1_000_000, 3, now=0.0)
    clients.greet(b"b", "other", 0, now=0.0)
    clients.heard(b"b", now=400.0)
    clients.heard(b"stranger", now=400.0)
    assert clients.jobs(now=500.0) == ["other"]
    assert len(clients.find(b"a", 500.0).job) == 256
    assert clients.find(b"\1\2", 500.0).job == "0102"
