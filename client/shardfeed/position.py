"""Where a trainer stands, in this process or in one of a DataLoader's workers, and where the next pass begins."""

from __future__ import annotations

import logging
from dataclasses import replace

from torch.utils.data import get_worker_info

from shardfeed.bookmark import Bookmark, Order
from shardfeed.epochs import Epochs
from shardfeed.options import read_whole
from shardfeed.plan import Cut
from shardfeed.routing import Step
from shardfeed_wire.errors import ConfigError, DataMismatchError, RecipeMismatchError

__all__ = ["Position", "this_worker"]

log = logging.getLogger("shardfeed")


def this_worker() -> tuple[int, int]:
    """Return which of how many workers of a DataLoader this process is; 0 of 1 without one."""
    info = get_worker_info()
    return (info.id, info.num_workers) if info is not None else (0, 1)


class Position:
    """The epoch, and the samples consumed of it.

    Worker k of K takes the steps k, k + K, ... of a pass, so that their loop sees the order of one
    process. It pickles: copies share the epoch, and each stands for itself.
    """

    def __init__(self) -> None:
        """Stand before epoch 0."""
        self._epochs = Epochs()
        self._resume: Bookmark | None = None
        self._standing: Bookmark | None = None
        self._under_way = False  # whether _standing is where a pass has come to, and nobody said otherwise since

    @property
    def epoch(self) -> int:
        """The epoch that the next pass begins, or the one under way."""
        return self._epochs.current

    @property
    def lanes(self) -> int | None:
        """The lanes of the bookmark that is gone on from, if there is one."""
        bookmark = self._resume or self._standing
        return bookmark.lanes if bookmark is not None else None

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass begin ``epoch``; a bookmark of that epoch still counts."""
        self._epochs.set(epoch)
        self._under_way = False
        if self._resume is not None and self._resume.epoch != epoch:
            log.warning(
                "set_epoch(%d) gives up the bookmark that was loaded, of epoch %d after %d samples; a framework that "
                "counts epochs itself must count from the bookmark's",
                epoch,
                self._resume.epoch,
                self._resume.consumed,
            )
            self._resume = None
        if self._standing is not None and self._standing.epoch != epoch:
            self._standing = None

    def load(self, bookmark: Bookmark) -> None:
        """Let the next pass go on from a bookmark."""
        if bookmark.workers > 1 and get_worker_info() is None:
            raise ConfigError(
                f"this state is of one of {bookmark.workers} workers of a StatefulDataLoader; load it through that, "
                "or save bookmark(batches=K), which any loader can go on from"
            )
        self._epochs.set(bookmark.epoch)
        self._resume = self._standing = bookmark
        self._under_way = False

    def begin(self, order: Order, cut: Cut, *, samples: int, allow_recipe_change: bool) -> tuple[int, int]:
        """Begin a pass; return its epoch, and the samples consumed before this process's first step.

        A pass that was left after its last batch counts as a full one: loops that count to `len` never ask
        for the end. A bookmark counts until a batch was delivered: some frameworks begin twice.
        Raises DataMismatchError, RecipeMismatchError or ConfigError where the bookmark does not fit.
        """
        worker, workers = this_worker()
        if self._under_way and self._standing is not None:
            epoch = self._standing.epoch
            if _rolled_over(self._standing, order, cut).epoch > epoch:
                self.finished(order, cut, epoch)
        epoch = self._epochs.begin(workers, in_workers=get_worker_info() is not None)
        if self._resume is not None:
            _check(self._resume, order, samples=samples, allow_recipe_change=allow_recipe_change)
        origin = self._start(epoch, worker, workers, cut)
        self._standing = self._at(order, epoch, origin)
        self._epochs.started(epoch, worker, origin)
        return epoch, origin

    def _start(self, epoch: int, worker: int, workers: int, cut: Cut) -> int:
        first, resume = worker * cut.step_samples, self._resume
        if resume is None or resume.epoch != epoch:
            return first
        if resume.workers == 1:
            return resume.consumed + first
        if (resume.worker, resume.workers) != (worker, workers):
            raise ConfigError(
                f"the state is of worker {resume.worker} of {resume.workers}, this is worker {worker} of {workers}; "
                "keep num_workers, or go on from bookmark(batches=K)"
            )
        return resume.consumed

    def delivered(self, order: Order, step: Step) -> None:
        """Stand behind a step."""
        self._resume, self._under_way = None, True
        self._standing = self._at(order, step.epoch, step.next_consumed)

    def finished(self, order: Order, cut: Cut, epoch: int) -> None:
        """Note a full pass: stand before the next epoch, unless `set_epoch` said otherwise meanwhile."""
        worker, _ = this_worker()
        self._resume, self._under_way = None, False
        following = self._epochs.finish(epoch, worker)
        if self._standing is not None and self._standing.epoch == epoch:
            self._standing = self._at(order, following, worker * cut.step_samples)

    def bookmark(self, order: Order, cut: Cut) -> Bookmark:
        """Return where the trainer stands. Raises ConfigError where only workers of a DataLoader know."""
        if get_worker_info() is None and self._epochs.in_workers:
            raise ConfigError(
                "state_dict(): the workers of a DataLoader iterate this data set, and what they fetch ahead does not "
                "count; use num_workers=0, torchdata's StatefulDataLoader, or bookmark(batches=K) with the batches "
                "that your loop has taken in this epoch"
            )
        if self._standing is not None:
            return _rolled_over(self._standing, order, cut)
        worker, workers = this_worker()
        return _rolled_over(self._at(order, self.epoch, self._start(self.epoch, worker, workers, cut)), order, cut)

    def computed(self, order: Order, cut: Cut, batches: int) -> Bookmark:
        """Return where a trainer stands that has taken ``batches`` batches of the pass begun last.

        With none taken that is the pass which comes next, unless one is under way.
        """
        batches = read_whole("batches", batches)
        if batches < 0:
            raise ConfigError(f"bookmark(batches={batches}): it is the batches that your loop has taken, 0 or more")
        begun = self._epochs.begun
        if begun is None or (not batches and begun[0] != self.epoch):
            resume = self._resume
            begun = self.epoch, resume.consumed if resume is not None and resume.epoch == self.epoch else 0
        epoch, origin = begun
        return _rolled_over(Bookmark.at(order, epoch, origin + batches * cut.step_samples), order, cut)

    def _at(self, order: Order, epoch: int, consumed: int) -> Bookmark:
        return Bookmark.at(order, epoch, consumed, *this_worker())


def _rolled_over(bookmark: Bookmark, order: Order, cut: Cut) -> Bookmark:
    """Return the beginning of the next epoch for the end of one, on every rank alike.

    The beginning of an epoch is none's end, not even where the epoch has no steps.
    """
    if bookmark.workers > 1 or not bookmark.consumed or replace(cut, rank=0).rows(bookmark.consumed) is not None:
        return bookmark
    return Bookmark.at(order, bookmark.epoch + 1, 0)


def _check(bookmark: Bookmark, order: Order, *, samples: int, allow_recipe_change: bool) -> None:
    """Raise where the servers have other data than the bookmark, or make other pixels of it."""
    if bookmark.data != order.data:
        raise DataMismatchError(
            f"the bookmark is of data {bookmark.data[:12]}, the servers have {order.data[:12]} with {samples:,} "
            "samples; serve the same manifest, or begin anew"
        )
    if bookmark.recipe != order.recipe:
        text = f"the bookmark was made with recipe {bookmark.recipe[:12]}, the servers have {order.recipe[:12]}"
        if not allow_recipe_change:
            raise RecipeMismatchError(f"{text}; pass allow_recipe_change=True to go on with other pixels")
        log.warning("%s; going on with other pixels, as allowed", text)
