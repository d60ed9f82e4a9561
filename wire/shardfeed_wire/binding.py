"""What to say where an address cannot be listened on."""

from __future__ import annotations

import errno
import os

from shardfeed_wire.errors import EndpointError

__all__ = ["cannot_bind"]

_NEXT = {
    errno.EADDRINUSE: "stop the program that has it, maybe a server, or choose another port; 0 takes a free one",
    errno.EADDRNOTAVAIL: "choose an address that this machine has",
    errno.ENODEV: "choose an address that this machine has",
    errno.EACCES: "choose a port from 1024 on, or a folder that is yours",
    errno.ENOENT: "make its folder first",
    errno.ENAMETOOLONG: "choose a path of at most 107 bytes",
}


def cannot_bind(what: str, number: int | None, said: object) -> EndpointError:
    """Return the error that says ``what``, such as ``cannot listen on URL``, why, and the next step.

    ``number`` is the system's number of the error; ``said`` counts where that is unknown here.
    """
    if number not in _NEXT:
        return EndpointError(f"{what}: {said}")
    return EndpointError(f"{what}: {os.strerror(number)}; {_NEXT[number]}")
