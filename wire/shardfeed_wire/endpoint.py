"""Endpoints: URLs that name servers, and the brace lists that name several at once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from shardfeed_wire.errors import ConfigError, EndpointError

__all__ = ["Endpoint", "expand_braces", "expand_endpoints", "parse_endpoint"]

_RANGE = re.compile(r"(-?[0-9]{1,18})\.\.(-?[0-9]{1,18})(?:\.\.(-?[0-9]{1,18}))?")
_MOST_EXPANSIONS = 1_000_000


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint, taken apart.

    ``scheme`` is ``tcp``, ``ipc``, ``sctp`` ...; ``host`` and ``port`` are set for network schemes
    (an IPv6 host without its brackets), ``path`` for ``ipc``. For ``sctp`` ``host`` may be several
    addresses of one machine, with commas between them; ``hosts`` takes them apart.
    """

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        """Write the URL that parses back to this endpoint."""
        if self.path:
            return f"{self.scheme}://{self.path}"
        host = ",".join(f"[{host}]" if ":" in host else host for host in self.hosts)
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def hosts(self) -> tuple[str, ...]:
        """The addresses of one machine that ``host`` names."""
        return tuple(self.host.split(","))

    @property
    def is_loopback(self) -> bool:
        """Whether only processes of this machine can reach it, by any of its addresses."""
        return bool(self.path) or all(map(_is_loopback, self.hosts))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def parse_endpoint(url: str) -> Endpoint:
    """Take one URL apart: ``tcp://host:port``, ``sctp://host,host:port`` or ``ipc:///path``.

    Raises EndpointError, with the URL and what to write, for anything else.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or not scheme.isalnum() or not rest:
        raise EndpointError(f"endpoint {url!r} is not a URL; write for example tcp://127.0.0.1:7880 or ipc:///tmp/feed")
    if scheme == "ipc":
        if not rest.startswith("/"):
            raise EndpointError(f"endpoint {url!r}: an ipc path is absolute; write ipc:///tmp/feed with three slashes")
        return Endpoint(scheme, path=rest)
    host, colon, port = rest.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65_535:
        raise EndpointError(
            f"endpoint {url!r} needs a host and a port (0 to 65535); write for example {scheme}://127.0.0.1:7880"
        )
    hosts = host.split(",")
    if len(hosts) > 1 and (scheme != "sctp" or not all(hosts)):
        raise EndpointError(
            f"endpoint {url!r}: only sctp:// takes several addresses of one machine, with commas between them; give "
            "several servers as several endpoints, or in braces"
        )
    return Endpoint(scheme, host=",".join(_without_brackets(host, url, scheme, port) for host in hosts), port=int(port))


def _without_brackets(host: str, url: str, scheme: str, port: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1]
    if ":" in host:
        raise EndpointError(f"endpoint {url!r}: put an IPv6 address in brackets, as in {scheme}://[::1]:{port}")
    return host


def expand_endpoints(endpoints: str | Iterable[str]) -> list[str]:
    """Expand one endpoint or several, each perhaps with braces; in order, once each. Raises EndpointError for none."""
    try:
        given = [endpoints] if isinstance(endpoints, str) else list(endpoints)
        expanded = [url.strip() for text in given for url in expand_braces(text)]
    except (TypeError, AttributeError):
        raise EndpointError(
            f"endpoints {endpoints!r}: write one URL or a list of them, for example tcp://127.0.0.1:7880"
        ) from None
    if not expanded:
        raise EndpointError("no endpoint was given; write for example tcp://127.0.0.1:7880")
    return list(dict.fromkeys(expanded))


def expand_braces(text: str) -> list[str]:
    """Expand ``{000..007}``, ``{0..9..3}`` and ``{a,b}`` as a shell does, zero padding kept.

    Returns the expansions in order, at most a million; raises ConfigError for a brace that does not
    close and for more than that. A brace with neither a comma nor a range is left as it stands.
    """
    try:
        return _expand(text, text)
    except RecursionError:
        raise ConfigError(f"{text[:100]!r}... has more braces than can be expanded; write several names") from None


def _expand(text: str, whole: str) -> list[str]:
    head, brace, rest = text.partition("{")
    if not brace:
        if "}" in text:
            raise _unclosed(whole)
        return [text]
    parts, tail = _split(rest, whole)
    if "}" in head:
        raise _unclosed(whole)
    choices = _choices(parts[0]) if len(parts) == 1 else [name for part in parts for name in _expand(part, whole)]
    if choices is None:
        choices = [f"{{{name}}}" for name in _expand(parts[0], whole)]
    tails = _expand(tail, whole)
    if len(choices) * len(tails) > _MOST_EXPANSIONS:
        raise ConfigError(f"{whole!r} expands to more than {_MOST_EXPANSIONS:,} names")
    return [head + choice + end for choice in choices for end in tails]


def _split(rest: str, whole: str) -> tuple[list[str], str]:
    """Split what follows a brace at its own commas, and return the parts and what follows its end."""
    depth, start, parts = 1, 0, list[str]()
    for place, character in enumerate(rest):
        if character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if not depth:
                return [*parts, rest[start:place]], rest[place + 1 :]
        elif character == "," and depth == 1:
            parts.append(rest[start:place])
            start = place + 1
    raise _unclosed(whole)


def _unclosed(whole: str) -> ConfigError:
    return ConfigError(f"{whole!r}: a brace does not close; write for example train-{{000..007}}.tar")


def _choices(body: str) -> list[str] | None:
    """Return the numbers of a range, or None where it is none."""
    span = _RANGE.fullmatch(body)
    if span is None:
        return None
    first, last = int(span[1]), int(span[2])
    step = abs(int(span[3] or 1)) or 1
    if abs(last - first) // step >= _MOST_EXPANSIONS:
        raise ConfigError(f"{{{body}}} expands to more than {_MOST_EXPANSIONS:,} names")
    padded = any(len(number.lstrip("-")) > 1 and number.lstrip("-").startswith("0") for number in span.groups()[:2])
    width = max(len(span[1]), len(span[2])) if padded else 0
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    return [f"{number:0{width}d}" if width else str(number) for number in numbers]
