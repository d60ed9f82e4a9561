"""Where a server's HTTP port is to be: ``host:port``, ``off``, or nothing said."""

from __future__ import annotations

from typing import Final

from shardfeed_wire.endpoint import Endpoint, parse_endpoint
from shardfeed_wire.errors import ConfigError, EndpointError

__all__ = ["DEFAULT", "OFF", "check_http", "parse_http"]

DEFAULT: Final = "127.0.0.1:9880"
"""Where it is when nothing is said and nobody is there yet."""

OFF: Final = "off"


def parse_http(address: str) -> Endpoint:
    """Take ``host:port`` apart. Raises ConfigError, with what to write, for anything else."""
    try:
        return parse_endpoint(f"http://{address}")
    except EndpointError:
        raise ConfigError(
            f"http: {address!r} is not an address; write for example {DEFAULT}, or {OFF} for no HTTP port"
        ) from None


def check_http(address: str | None, *, public: bool) -> None:
    """Raise ConfigError for what is no address, and for one that other machines reach unless that is allowed."""
    if address not in (None, OFF) and not parse_http(address).is_loopback and not public:
        raise ConfigError(
            f"http: {address!r} can be reached from other machines, and HTTP knows no keys: whoever reaches it reads "
            "health and figures (names of streams and jobs, no samples), and can do nothing else; pass `--http-public` "
            f"or write `http_public = true` where that may be, else listen on {DEFAULT}"
        )
