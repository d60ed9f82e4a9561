"""URLs of plain streams: batches as tenbin messages with no protocol around them, as Tensorcom speaks them.

``zpush zpull zpub zsub`` are ZeroMQ's PUSH, PULL, PUB and SUB; there PULL and PUB bind, and PUSH and SUB
connect. With an r (``zrpush zrpull zrpub zrsub``) it is the other way round. ``+tcp``, which is the
default, or ``+ipc`` behind the scheme names what carries them: ``zpush+ipc:///tmp/feed``.

``sctp://host:port`` is one batch an SCTP message, as the documented ``tenbin.sctp_send`` and ``sctp_recv``
have it; both sides write the same URL, and there the receiver binds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from shardfeed_wire.endpoint import Endpoint, expand_endpoints, parse_endpoint
from shardfeed_wire.errors import EndpointError

__all__ = ["Pattern", "PlainEndpoint", "expand_plain", "parse_plain"]

Pattern: TypeAlias = Literal["push", "pull", "pub", "sub"]

_BINDS: dict[Pattern, bool] = {"push": False, "pull": True, "pub": True, "sub": False}
_SENDS: frozenset[Pattern] = frozenset(("push", "pub"))
_SCHEMES: dict[str, tuple[Pattern, bool]] = {
    **{f"z{pattern}": (pattern, binds) for pattern, binds in _BINDS.items()},
    **{f"zr{pattern}": (pattern, not binds) for pattern, binds in _BINDS.items()},
}


@dataclass(frozen=True, slots=True)
class PlainEndpoint:
    """One plain stream's URL, taken apart.

    ``pattern`` is the ZeroMQ socket's kind (over SCTP ``push`` and ``pull``), ``binds`` whether it binds or
    connects, and ``address`` where: a URL of ``tcp``, ``ipc`` or ``sctp``.
    """

    url: str
    pattern: Pattern
    binds: bool
    address: str

    @property
    def sends(self) -> bool:
        """Whether batches go out here."""
        return self.pattern in _SENDS

    @property
    def is_sctp(self) -> bool:
        """Whether SCTP carries it, one message of one buffer a batch."""
        return self.address.startswith("sctp:")

    @property
    def is_exposed(self) -> bool:
        """Whether it binds an address that other machines reach. To connect is not to bind."""
        return self.binds and not self.address.startswith("ipc:") and not parse_endpoint(self.address).is_loopback


def parse_plain(url: str, *, sends: bool) -> PlainEndpoint:
    """Take one URL apart, for the side that ``sends`` or the one that receives. A path of ``+ipc`` may be relative.

    Raises EndpointError, with the URL and what to write, for anything else, and for the other side's URL.
    """
    if url.startswith("sctp://"):
        return PlainEndpoint(url, "push" if sends else "pull", not sends, str(parse_endpoint(url)))
    example = "zpush://127.0.0.1:7890" if sends else "zpull://127.0.0.1:7890"
    scheme, separator, rest = url.partition("://")
    name, _, carrier = scheme.partition("+")
    if not separator or name not in _SCHEMES or carrier not in ("", "tcp", "ipc") or not rest:
        raise EndpointError(
            f"endpoint {url!r} is no plain stream; write for example {example}, or {example[:5]}+ipc:///tmp/feed "
            f"(the schemes are {' '.join(_SCHEMES)} sctp)"
        )
    pattern, binds = _SCHEMES[name]
    if (pattern in _SENDS) is not sends:
        side, fitting = ("receives", "zpush zpub zrpush zrpub") if sends else ("sends", "zpull zsub zrpull zrsub")
        raise EndpointError(f"endpoint {url!r} {side}; here it is one of {fitting}: for example {example}")
    address = f"ipc://{rest}" if carrier == "ipc" else str(_host_and_port(url, rest))
    return PlainEndpoint(url, pattern, binds, address)


def expand_plain(urls: str | Iterable[str], *, sends: bool) -> list[PlainEndpoint]:
    """Expand one URL or several, each perhaps with braces, and take them apart; see `parse_plain`.

    Raises EndpointError for none, and where a sender is to push and to publish at once.
    """
    endpoints = [parse_plain(url, sends=sends) for url in expand_endpoints(urls)]
    if sends and len({endpoint.pattern for endpoint in endpoints}) > 1:
        raise EndpointError(
            "a batch is either pushed to one receiver or published to all: give zpush, zrpush and sctp, or zpub and "
            "zrpub"
        )
    return endpoints


def _host_and_port(url: str, rest: str) -> Endpoint:
    try:
        return parse_endpoint(f"tcp://{rest}")
    except EndpointError as error:
        raise EndpointError(f"endpoint {url!r}: {error}") from None
