"""A server's figures in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from shardfeed_server.figures import BOUNDS, CAUSES, PHASES, Figures, Standing

__all__ = ["expose"]

_JOB = "training"
"""The label of a client's job: `job` is Prometheus's own, which renames it in whoever brings one along."""

_COUNTERS = (
    ("samples", "shardfeed_samples", "Good samples sent"),
    ("batches", "shardfeed_batches", "Answers sent; a trainer's batch takes one or several"),
    ("bytes", "shardfeed_sent_bytes", "Bytes of the answers sent"),
    ("cpu", "shardfeed_cpu_seconds", "CPU seconds that workers spent on the answers sent"),
    ("masked", "shardfeed_masked_rows", "Rows of the answers sent that could not be made"),
    ("busy", "shardfeed_busy_refusals", "Requests refused because the queue was full"),
    ("hits", "shardfeed_cache_hits", "Samples of far shards found in the cache"),
    ("misses", "shardfeed_cache_misses", "Samples of far shards that had to be fetched"),
    ("shared", "shardfeed_shared_samples", "Those of the good samples sent that were made for an equal request"),
)

_DURATIONS = {
    "waiting": "a request waited for a worker",
    "reading": "a worker spent reading an answer's samples",
    "decoding": "a worker spent decoding and transforming them",
    "collating": "a worker spent putting them into columns",
    "sending": "it took until an answer was sent",
}


def expose(standing: Standing, figures: Figures) -> bytes:
    """Return what a scrape of ``/metrics`` gets, in version 0.0.4 of the text format. Takes milliseconds."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_Server(standing, figures))
    return generate_latest(registry)


class _Server(Collector):
    def __init__(self, standing: Standing, figures: Figures) -> None:
        self._standing, self._figures = standing, figures

    def describe(self) -> Iterable[Metric]:
        return ()  # one collector of a registry of its own: there is nothing to collide with

    def collect(self) -> Iterator[Metric]:
        standing = self._standing
        info = InfoMetricFamily("shardfeed_server", "The server's name and version")
        info.add_metric([], {"server": standing.name, "software": standing.software})
        yield info
        ready = "Whether requests are answered: manifests loaded, and not draining"
        yield GaugeMetricFamily("shardfeed_ready", ready, int(standing.ready))
        yield GaugeMetricFamily("shardfeed_workers", "Worker processes", standing.workers)
        yield GaugeMetricFamily("shardfeed_queue_requests", "Requests that wait for a worker", standing.queued)
        unsent = "Bytes of answers under way or finished, and not yet sent"
        yield GaugeMetricFamily("shardfeed_unsent_bytes", unsent, standing.unsent)
        kept = "Bytes of finished answers kept for equal requests"
        yield GaugeMetricFamily("shardfeed_kept_bytes", kept, standing.kept)
        deaths = "Workers that died and were replaced"
        yield CounterMetricFamily("shardfeed_worker_deaths", deaths, self._figures.worker_deaths)
        yield self._failed()
        yield self._clients()
        yield from self._served()
        yield from self._trainers()

    def _failed(self) -> Metric:
        family = CounterMetricFamily(
            "shardfeed_failed_requests", "Requests that workers could not answer, by the refusal", labels=["reason"]
        )
        for reason, count in self._figures.failed.items():
            family.add_metric([reason], count)
        return family

    def _clients(self) -> Metric:
        text = "Clients heard within the last five minutes"
        family = GaugeMetricFamily("shardfeed_clients", text, labels=[_JOB])
        counts: dict[str, int] = {}
        for job in self._standing.clients:
            counts[job] = counts.get(job, 0) + 1
        for job, count in counts.items():
            family.add_metric([job], count)
        return family

    def _served(self) -> Iterator[Metric]:
        labels, served = ["stream", _JOB], self._figures.served
        for attribute, name, text in _COUNTERS:
            counter = CounterMetricFamily(name, text, labels=labels)
            for key, each in served.items():
                counter.add_metric(key, getattr(each, attribute))
            yield counter
        for number, phase in enumerate(PHASES):
            durations = HistogramMetricFamily(
                f"shardfeed_{phase}_seconds", f"Seconds that {_DURATIONS[phase]}", labels=labels
            )
            for key, each in served.items():
                histogram = each.seconds[number]
                durations.add_metric(key, _cumulated(histogram.counts), histogram.sum)
            yield durations

    def _trainers(self) -> Iterator[Metric]:
        steps = CounterMetricFamily("shardfeed_trainer_steps", "Steps that trainers took", labels=[_JOB, "rank"])
        text = "Seconds that trainers waited for their batches, by what they waited for, as they tell"
        seconds = CounterMetricFamily("shardfeed_trainer_waiting_seconds", text, labels=[_JOB, "rank", "cause"])
        for key, trainer in self._figures.trainers.items():
            steps.add_metric(key, trainer.steps)
            for cause in CAUSES:
                seconds.add_metric([*key, cause], trainer.seconds[cause])
        yield steps
        yield seconds


def _cumulated(counts: list[int]) -> list[tuple[str, float]]:
    """Return a histogram's buckets as Prometheus counts them: each with all that lies below."""
    buckets, total = [], 0
    for bound, count in zip([*map(str, BOUNDS), "+Inf"], counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets
