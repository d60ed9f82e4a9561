"""Which stream a command means that names none."""

from __future__ import annotations

from shardfeed.addresses import endpoints_now
from shardfeed.inquiry import ask_server
from shardfeed.local import LOCAL
from shardfeed_wire.errors import NobodyAnswersError

__all__ = ["only_stream"]


def only_stream(url: str, timeout: float, curve: str | None) -> str:
    """Return the name of the server's stream where it has one only."""
    for endpoint in endpoints_now(url):
        if endpoint.startswith(LOCAL):
            continue
        try:
            streams = ask_server(endpoint, timeout=timeout, curve=curve).streams
        except NobodyAnswersError:  # another may answer; if none does, the data set says so
            continue
        if len(streams) == 1:
            return streams[0].name
    return "default"
