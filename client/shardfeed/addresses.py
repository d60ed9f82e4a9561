"""From endpoints to addresses: a name with several addresses is several servers."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from ipaddress import ip_address

from shardfeed_wire.endpoint import parse_endpoint
from shardfeed_wire.errors import ConnectError

__all__ = ["resolve"]


async def resolve(endpoints: list[str]) -> list[str]:
    """Return the URLs behind the endpoints, in order and once each.

    Blocks for name look-ups. Raises ConnectError where no name has an address, EndpointError where a URL is none.
    """
    urls: dict[str, None] = {}
    failures = []
    for endpoint in endpoints:
        try:
            urls.update(dict.fromkeys(await _addresses(endpoint)))
        except OSError as error:
            failures.append(f"{endpoint}: {error.strerror or error}")
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
