"""What a trainer is told where its batches cannot be fetched. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from shardfeed_wire.errors import SampleError, StarvedError

__all__ = ["killers", "starved"]


def killers(samples: str, deaths: int) -> SampleError:
    """Return the error for samples that were under way at ``deaths`` deaths of servers."""
    return SampleError(
        f"{deaths} servers died while they worked on these samples, so no other is asked: {samples}. "
        "Look at the servers' logs; leave the guilty sample out or mend it",
        reason=f"{deaths} servers died",
    )


def starved(
    waited: float, timeout: float, *, words: Mapping[str, str], orphans: str | None, holders: list[str]
) -> StarvedError:
    """Return the error for a next batch that had no useful answer for ``waited`` seconds.

    ``words`` has the last word of each server; ``orphans`` names samples that no server that is up can read,
    and ``holders`` are servers that could before they went.
    """
    said = "; ".join(f"{name}: {word}" for name, word in sorted(words.items())) or "no server was ever up"
    advice = "Look at the servers, or raise timeout= where they are that slow"
    lost = ""
    if orphans is not None:
        before = f"; {', '.join(holders)} did before" if holders else ""
        lost = f"No server that is up reads {orphans}{before}. "
        advice = "Start a server that reads these shards"
    return StarvedError(
        f"the next batch had no useful answer for {waited:.0f} s (timeout={timeout:g}). {lost}{said}. {advice}"
    )
