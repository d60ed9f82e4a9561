"""From endpoints to addresses: a name with several addresses is several servers, and so is a deployment on Ray."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import ip_address
from typing import TypeAlias

from shardfeed.ray_cluster import RayEndpoints
from shardfeed_wire.endpoint import expand_endpoints, parse_endpoint
from shardfeed_wire.errors import ConnectError
from shardfeed_wire.ray_names import RAY

__all__ = ["Endpoints", "endpoints_now", "read_endpoints", "resolve"]

Endpoints: TypeAlias = "list[str] | Callable[[], str | Iterable[str]]"
"""URLs, or a callable that returns those there are now; it is called in the session's thread and may block."""


def read_endpoints(given: str | Iterable[str] | Callable[[], str | Iterable[str]]) -> Endpoints:
    """Return the endpoints that a user gave, braces expanded, ``ray://NAME`` as a callable. Does not block.

    Raises EndpointError for a URL that cannot be used, and ConfigError for a deployment's name that is none.
    """
    if callable(given):
        return given
    if isinstance(given, str) and given.startswith(RAY):
        return RayEndpoints(given)
    return expand_endpoints(given)


def endpoints_now(given: str) -> list[str]:
    """Return the URLs that a text names at this moment. Blocks for some seconds where it asks Ray.

    Raises what `read_endpoints` does, and NobodyAnswersError where a deployment has no server.
    """
    endpoints = read_endpoints(given)
    return expand_endpoints(endpoints()) if callable(endpoints) else endpoints


async def resolve(endpoints: list[str], last: dict[str, list[str]] | None = None) -> list[str]:
    """Return the URLs behind the endpoints, in order and once each.

    ``last`` keeps each endpoint's for the next call, where they count for a name that cannot be looked up then.
    Blocks for name look-ups. Raises ConnectError where no name has an address, EndpointError where a URL is none.
    """
    last = {} if last is None else last
    urls: dict[str, None] = {}
    failures = []
    for endpoint in endpoints:
        try:
            last[endpoint] = await _addresses(endpoint)
        except OSError as error:
            failures.append(f"{endpoint}: {error.strerror or error}")
        urls.update(dict.fromkeys(last.get(endpoint, [])))
    if not urls:
        raise ConnectError(
            f"no endpoint has an address: {'; '.join(failures)}. Correct the name, or look at the name service"
        )
    return list(urls)


async def _addresses(url: str) -> list[str]:
    endpoint = parse_endpoint(url)
    if endpoint.path or all(map(_is_address, endpoint.hosts)):
        return [str(endpoint)]
    if len(endpoint.hosts) > 1:  # several addresses of one server, each of which may be a name
        first = [await _first_address(host, endpoint.port) for host in endpoint.hosts]
        return [str(replace(endpoint, host=",".join(first)))]
    found = await asyncio.get_running_loop().getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    return [str(replace(endpoint, host=str(address[0]))) for *_, address in found]


async def _first_address(host: str, port: int) -> str:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return str(found[0][4][0])


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
