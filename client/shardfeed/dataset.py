"""`RemoteDataset`: what a trainer iterates."""

from __future__ import annotations

import logging
import os
import socket
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch.utils.data import IterableDataset

from shardfeed.addresses import read_endpoints
from shardfeed.batch_info import BatchInfo
from shardfeed.bookmark import Order, read_bookmark
from shardfeed.connection import Connection
from shardfeed.delivery import BatchOptions
from shardfeed.digest import digest_rows
from shardfeed.feed import Delivered, Feed
from shardfeed.fetch_events import FetchLimits
from shardfeed.loaders import caller, is_data_loader, is_stateful, reads_ahead, refuse_batching, refuse_sharing
from shardfeed.options import DigestOf, OnError, Options, check_framing, check_seconds, check_text, read_tail
from shardfeed.passes import Pass
from shardfeed.peer import Framing
from shardfeed.plan import Cut, Tail, default_lanes
from shardfeed.position import Position, this_worker
from shardfeed.ranks import Ranks
from shardfeed.recorder import Recorder
from shardfeed.staging import Cuda, Staged, check_device
from shardfeed.stats import Stats
from shardfeed_wire.curve import load_client_keys
from shardfeed_wire.errors import ClosedChannelError, ConfigError, ShardfeedError

__all__ = ["RemoteDataset"]

log = logging.getLogger("shardfeed")

_ENDED = "ended this iterator in mid-epoch"


class RemoteDataset(IterableDataset[Any]):
    """The batches of one stream of loader servers, in one order for one seed.

    Iterate it as it is; no DataLoader is needed around it. Each pass is one epoch, and `epoch`
    advances after a full one; leaving a loop early and iterating again starts the epoch again.
    Batches are tuples or dicts, as the servers' recipe says, of torch tensors of shape (rows, ...), or
    of lists for text, JSON and ragged columns.
    """

    def __init__(
        self,
        endpoints: str | Iterable[str] | Callable[[], str | Iterable[str]],
        *,
        stream: str = "default",
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        lanes: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        process_group: Any = None,
        tail: Tail | None = None,
        drop_last: bool = False,
        on_error: OnError = "raise",
        prefetch_bytes: int = 256 << 20,
        connect_timeout: float = 30.0,
        timeout: float = 300.0,
        framing: Framing = "multipart",
        shared_memory: bool = True,
        job: str | None = None,
        curve: str | os.PathLike[str] | None = None,
        pin_memory: bool = False,
        device: str | torch.device | None = None,
        batch_transform: Callable[[Any], Any] | None = None,
        info: bool = False,
        allow_recipe_change: bool = False,
        digest: DigestOf = "keys",
    ) -> None:
        """Say what to iterate. Connects to nothing and reads no rank yet: the first `iter` or `len` does.

        Args:
            endpoints: one URL or several, with brace lists: ``tcp://data-{0..3}:7880``, ``ipc:///path``,
                ``ray://NAME`` for a deployment on Ray, or ``local:shardfeed.toml`` for a private server process
                on this machine. A name with
                several addresses is several servers, and is looked up again every two seconds; so is a
                callable that returns the endpoints there are now.
            stream: the stream's name on the servers.
            batch_size: rows of one batch on this rank.
            seed: of the order and of the servers' augmentation; 0 .. 2**64 - 1.
            shuffle: whether the order is random; without it, and on one rank, it is the files' order.
            lanes: how many blocks an epoch is dealt from in turn; part of the order.
            rank: this process's rank, together with ``world_size``. By default that of ``process_group``,
                of torch.distributed, of the variables RANK and WORLD_SIZE, or 0 of 1.
            world_size: how many ranks share an epoch.
            process_group: the torch process group whose ranks share an epoch.
            tail: the end of an epoch: ``"exact"`` (a short last step), ``"pad"`` (filled with repeated
                samples) or ``"drop"``. By default exact for one rank and pad for several.
            drop_last: the same as ``tail="drop"``.
            on_error: ``"raise"`` a SampleError for a bad sample, or ``"mask"`` it: the row repeats a
                good one and is not ``valid``.
            prefetch_bytes: bytes asked for or received ahead of the trainer; one batch is always allowed.
            connect_timeout: seconds within which a server must be found.
            timeout: seconds after which a next batch without any useful answer is an error.
            framing: ``"multipart"`` (one frame an array, no copy) or ``"single"`` (one frame a message).
            shared_memory: whether a server on this machine, run by the same user, may lend answers as memory
                instead of sending them. Batches are the trainer's own nevertheless, and may be edited in place.
            job: the name under which servers share their time fairly; by default one for each object.
            curve: this client's key file, made by ``shardfeed keygen``, for servers with ``--curve``: all traffic is
                then encrypted, and both sides are authenticated.
            pin_memory: whether dense columns lie in page-locked memory; needs an accelerator.
            device: where tensors are to be, such as ``"cuda"``: they are copied from page-locked memory on a stream
                of their own, one batch ahead. By default, and for ``"cpu"``, they stay in memory.
            batch_transform: called with each batch in the trainer's thread; its result is what is yielded.
            info: whether each batch brings its `BatchInfo`.
            allow_recipe_change: whether a bookmark made with another recipe is gone on from.
            digest: what the `digest` is of: places and ``"keys"``, or every row's ``"content"`` too, which
                takes about 1 ms for 1 MB.

        Raises ConfigError for an argument that makes no sense, and for a key file that is none or open to others.
        """
        super().__init__()
        if curve is not None:
            load_client_keys(curve)  # to say at once what is wrong; each session reads it again
        self._device = check_device(device)
        self._options = Options(
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            lanes=lanes,
            tail=read_tail(tail, drop_last=drop_last),
            on_error=on_error,
            prefetch_bytes=prefetch_bytes,
            timeout=timeout,
            pin_memory=pin_memory or self._device is not None,
            batch_transform=batch_transform,
            info=info,
            allow_recipe_change=allow_recipe_change,
            digest=digest,
        )
        self._connection = Connection(
            read_endpoints(endpoints),
            check_text("stream", stream),
            job=check_text("job", job or "") or f"{socket.gethostname()}-{os.getpid()}-{id(self):x}",
            framing=check_framing(framing),
            shared_memory=shared_memory,
            connect_timeout=check_seconds("connect_timeout", connect_timeout),
            curve=None if curve is None else str(Path(curve).absolute()),
        )
        self.batch_size = self._options.batch_size
        self._ranks = Ranks(rank, world_size, process_group)
        self._position = Position()
        self._read_ahead = False
        self._digest = 0
        self._recorder = Recorder()
        self._iterator: weakref.ref[_Iterator] | None = None

    @property
    def epoch(self) -> int:
        """The epoch that the next `iter` begins, or the one under way; that which a DataLoader's workers are at."""
        return self._position.epoch

    def set_epoch(self, epoch: int) -> None:
        """Let the next `iter` begin ``epoch``, in a DataLoader's workers too. A bookmark of that epoch still counts.

        accelerate's loaders call this, and are recognised by it: raises ConfigError where they would lose data.
        """
        frame = caller()
        refuse_sharing(frame, self._ranks)
        self._read_ahead = reads_ahead(frame)
        self._position.set_epoch(epoch)

    @property
    def digest(self) -> str:
        """The digest of all rows that this object delivered, padding left out: 32 hexadecimal digits."""
        return f"{self._digest:032x}"

    @property
    def stats(self) -> Stats:
        """What this object has delivered so far, how long the trainer waited for it, and for what."""
        return self._recorder.stats(self._connection.counters())

    def state_dict(self) -> dict[str, Any]:
        """Return the bookmark: where the trainer stands after the batch last delivered to it, as JSON knows it.

        It is the same on every rank after the same step, and any number of ranks, batch size and
        servers can go on from it. Connects where that has not happened yet. Raises ConfigError in
        the parent of a DataLoader's workers, which alone know what was delivered, and behind a loader
        that takes batches ahead of the loop.
        """
        if self._read_ahead and not is_stateful(caller()):
            raise ConfigError(
                "state_dict(): the loader that accelerator.prepare() made takes a batch ahead of your loop, which a "
                "run that goes on would lose; iterate the RemoteDataset itself, without accelerator.prepare()"
            )
        return self._position.bookmark(self._order(), self._cut()).state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next `iter` go on from a bookmark. Does not block.

        Raises ConfigError for what is no bookmark, and for one made with another ``seed``, ``shuffle``
        or ``lanes``. The `iter` raises DataMismatchError where the servers have other data, and
        RecipeMismatchError where they have another recipe, unless ``allow_recipe_change``.
        """
        bookmark = read_bookmark(state)
        bookmark.check(seed=self._options.seed, shuffle=self._options.shuffle, lanes=self._options.lanes)
        self._position.load(bookmark)

    def bookmark(self, batches: int) -> dict[str, Any]:
        """Return the bookmark after ``batches`` batches of the pass begun last, counted from where it was begun.

        For loops whose DataLoader has workers: it is computed, not observed. Connects where that has
        not happened yet.
        """
        return self._position.computed(self._order(), self._cut(), batches).state()

    def __len__(self) -> int:
        """Return the steps of a whole epoch on this rank. Connects where that has not happened yet."""
        return self._cut().steps()

    def __iter__(self) -> Iterator[Any]:
        """Begin the epoch: connect where that has not happened yet, and ask for the first batches.

        Raises what `RemoteDataset` names under ``connect_timeout``, and RefusedError where a server
        does not fit. Raises ConfigError for a loader around it that would lose data. An iterator begun
        before is ended, and raises ConfigError where it is asked for more in mid-epoch.
        """
        frame = caller()
        refuse_batching(frame)
        refuse_sharing(frame, self._ranks)
        self._read_ahead = self._read_ahead and is_data_loader(frame)  # a loop of the user's own takes what it gets
        return _Iterator(self)

    def close(self) -> None:
        """End the connections, the thread and a private server. Iterating again connects anew. Idempotent.

        An iterator that is asked for more in mid-epoch raises ClosedChannelError.
        """
        if self._iterator is not None and (iterator := self._iterator()) is not None:
            iterator._end(ClosedChannelError(f"close() {_ENDED}; begin the epoch again"))
        self._connection.close()

    def __enter__(self) -> Self:
        """Return the data set; leaving the block closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the iterator behind; the connection leaves its thread and sockets behind itself."""
        return {**self.__dict__, "_iterator": None}

    def _cut(self) -> Cut:
        rank, world_size = self._ranks.find()
        return self._options.cut(self._connection.session(rank).info.samples, rank, world_size)

    def _order(self) -> Order:
        session, options = self._connection.session(), self._options
        blocks = len(session.manifest.block_sizes)
        lanes = self._position.lanes or options.lanes or default_lanes(blocks, shuffle=options.shuffle)
        info = session.info
        return Order(data=info.data, recipe=info.recipe, seed=options.seed, shuffle=options.shuffle, lanes=lanes)

    def _begin(self) -> tuple[Feed, Pass]:
        """Ask for the epoch's steps, in a DataLoader's worker for its share of them; return the pass, too."""
        self._connection.renew()
        cut, order, options = self._cut(), self._order(), self._options
        session = self._connection.session()
        epoch, consumed = self._position.begin(
            order, cut, samples=cut.samples, allow_recipe_change=options.allow_recipe_change
        )
        self._ranks.compare(order, cut, epoch=epoch, consumed=consumed)
        worker, workers = this_worker()
        wanted = Pass(
            order=order,
            cut=cut,
            epoch=epoch,
            consumed=consumed,
            origin=worker * cut.step_samples,
            stride=workers,
            limits=FetchLimits(prefetch_bytes=max(1, options.prefetch_bytes // workers), timeout=options.timeout),
            options=BatchOptions(
                seed=options.seed,
                keys=options.info,
                on_error=options.on_error,
                pin_memory=options.pin_memory,
                content=options.digest == "content",
            ),
        )
        return session.fetch(wanted, self._recorder.untold), wanted

    def _take(self, batch: Delivered, waited: float, asked: float) -> Any:
        """Give a batch, asked for at ``asked``, the shape that the trainer asked for, and count it as delivered."""
        now = time.monotonic()
        step = batch.step
        counted = batch.good & ~step.padding
        columns = batch.columns
        if self._options.info:
            info = BatchInfo(step.epoch, step.number, list(batch.shards), list(batch.keys), torch.from_numpy(counted))
            columns = {**columns, "__info__": info}
        made = tuple(columns.values()) if self._connection.session().info.unnamed else columns
        if self._options.batch_transform is not None:
            made = self._options.batch_transform(made)  # where it raises, the trainer has nothing of this batch yet
        self._digest += digest_rows(step.epoch, step.positions[~step.padding], batch.keyhash[~step.padding])
        self._digest %= 1 << 128
        masked = int((~batch.good).sum())
        if masked and not self._recorder.masked:
            log.warning(
                "a batch has %d bad samples, masked; `stats.masked` counts them, `info=True` shows them", masked
            )
        self._recorder.delivered(
            samples=int(counted.sum()),
            size=batch.size,
            masked=masked,
            trip=batch.trip,
            waited=waited,
            asked=asked,
            now=now,
        )
        self._position.delivered(self._order(), step)
        return made

    def _finished(self, epoch: int) -> None:
        self._position.finished(self._order(), self._cut(), epoch)


class _Iterator:
    """One pass over one epoch. What ends it in mid-epoch is never taken for the epoch's end."""

    _error: ShardfeedError | None = None

    def __init__(self, dataset: RemoteDataset) -> None:
        if dataset._iterator is not None and (before := dataset._iterator()) is not None:
            before._end(ConfigError(f"a newer iter() {_ENDED}; a loop inside a loop takes another RemoteDataset"))
        self._dataset = dataset
        self._owner = os.getpid()
        self._feed: Feed | Staged | None = None
        device = None if dataset._device is None else Cuda(dataset._device)  # which may refuse, before a pass begins
        feed, self._pass = dataset._begin()
        self._feed = feed if device is None else Staged(feed, device)
        self._consumed = self._pass.consumed
        dataset._recorder.begin()
        dataset._iterator = weakref.ref(self)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if self._owner != os.getpid():
            raise ConfigError("this iterator is the parent's, whose thread no fork has; iterate the data set here anew")
        feed = self._feed
        if feed is None:
            error, self._error = self._error, None
            raise error if error is not None else StopIteration
        before, asked = feed.waited, time.monotonic()
        try:
            batch = feed.next()
        except BaseException:
            self._end()
            raise
        if batch is None:
            self._feed = None
            self._dataset._recorder.ended(asked)
            self._dataset._finished(self._pass.epoch)
            raise StopIteration
        self._consumed = batch.step.next_consumed
        return self._dataset._take(batch, feed.waited - before, asked)

    def _end(self, error: ShardfeedError | None = None) -> None:
        """End the pass. `next` then raises ``error``, once, where this is not its end."""
        feed, self._feed = self._feed, None
        if feed is None or self._owner != os.getpid():
            return  # a child's copy leaves alone what is its parent's
        if self._pass.cut.rows(self._consumed) is not None:
            self._error = error
        feed.close(self._error)

    def __del__(self) -> None:
        """Left early: end the pass, and with it the thread and the sockets; the next `iter` makes new ones."""
        if getattr(self, "_feed", None) is not None:
            self._end()
            self._dataset.close()
