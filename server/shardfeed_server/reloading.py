"""Streams re-read while they are served: a new generation takes over, and the old one answers what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import msgspec

from shardfeed_server.config import ServerConfig
from shardfeed_server.events import logger
from shardfeed_server.generation import Generation, Preparation, StoppedError
from shardfeed_server.service import ServedStream, Service
from shardfeed_wire.errors import ShardfeedError

__all__ = ["Reloading"]

_REREAD = ("streams", "code_dir", "workers", "sample_timeout", "cache_bytes", "cache_dir")
"""The keys that make a generation; a change of the others needs a restart."""

log = logger("shardfeed.server")


class Reloading:
    """The generation that is served, and those that are done with or are to come."""

    def __init__(
        self, service: Service, preparation: Preparation, config: ServerConfig, reread: Callable[[], ServerConfig]
    ) -> None:
        """Serve nothing yet. ``reread`` returns the configuration as it is by now, or raises ConfigError."""
        self._service, self._preparation, self._config, self._reread = service, preparation, config, reread
        self.on_change: Callable[[list[str], list[str]], None] = lambda _changed, _gone: None
        """Called with the names of streams that are about to be other ones, and to go."""
        self._asked = asyncio.Event()
        self._generations: list[Generation] = []
        self._retiring: set[asyncio.Task[None]] = set()

    def ask(self) -> None:
        """Have the configuration re-read, after the reading under way if there is one."""
        self._asked.set()

    async def start(self) -> Generation:
        """Make the first generation and serve it. Raises what `Preparation.make` raises."""
        generation = await self._preparation.make(self._config)
        self._serve(generation)
        return generation

    async def run(self) -> None:
        """Re-read whenever that is asked for. A configuration that cannot be served changes nothing, and is logged."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            try:
                await self._reload()
            except StoppedError:
                return
            except ShardfeedError as error:
                log.error("the configuration was not re-read; the streams stay as they are", error=str(error))
            except Exception:
                log.exception("the configuration was not re-read, by a defect; the streams stay as they are")

    async def close(self) -> None:
        """Stop every generation."""
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        for generation in self._generations:
            await generation.stop()

    def _serve(self, generation: Generation) -> None:
        self._generations.append(generation)
        self._service.open(generation.workers, generation.streams)

    async def _reload(self) -> None:
        config = await asyncio.to_thread(self._reread)
        for key in (field.name for field in msgspec.structs.fields(ServerConfig)):
            if key not in _REREAD and getattr(config, key) != getattr(self._config, key):
                log.warning("a key changed that needs a restart of the server; it stays as it is", key=key)
        old = self._generations[-1]
        new = await self._preparation.make(config)
        difference = _difference(old.streams, new.streams)
        self.on_change(difference.get("changed", "").split(), difference.get("gone", "").split())
        self._serve(new)
        task = asyncio.create_task(self._retire(old))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        log.info("the configuration was re-read", **difference)

    async def _retire(self, generation: Generation) -> None:
        await self._service.answered_by(generation.workers)
        await generation.stop()
        self._generations.remove(generation)


def _difference(old: Iterable[ServedStream], new: Iterable[ServedStream]) -> dict[str, str]:
    """Say which streams are new, other ones under the same name, gone, and the same."""
    before, after = ({stream.info.name: stream.info for stream in streams} for streams in (old, new))
    changed = [
        name
        for name in before.keys() & after.keys()
        if (before[name].data, before[name].recipe) != (after[name].data, after[name].recipe)
    ]
    parts = {
        "new": after.keys() - before.keys(),
        "changed": changed,
        "gone": before.keys() - after.keys(),
        "same": before.keys() & after.keys() - set(changed),
    }
    return {word: " ".join(sorted(names)) for word, names in parts.items() if names}
