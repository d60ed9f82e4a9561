"""The one rule about what other machines may reach: encrypted, or on loopback, or said to be meant."""

from __future__ import annotations

from shardfeed_wire.errors import ConfigError

__all__ = ["CURVE_SCHEMES", "check_exposure"]

CURVE_SCHEMES = frozenset({"tcp", "ipc"})
"""The URL schemes of ZeroMQ with our protocol, which CURVE keys encrypt and authenticate; others have no encryption."""


def check_exposure(key: str, url: str, *, loopback: bool, insecure: bool, curve: bool = False) -> None:
    """Refuse to listen where other machines reach us unless CURVE guards it or ``insecure`` says that it is meant.

    ``key`` is the option or configuration key that ``url`` comes from; ``loopback`` is whether only
    this machine reaches it (`Endpoint.is_loopback`); ``curve`` is whether CURVE keys are configured.
    Raises ConfigError that says what to do.
    """
    scheme = url.partition("://")[0]
    guardable = scheme in CURVE_SCHEMES
    if loopback or insecure or (curve and guardable):
        return
    way_out = "`--insecure` or write `insecure = true` where the network is trusted, else bind to 127.0.0.1"
    if guardable:
        raise ConfigError(
            f"{key}: {url!r} can be reached from other machines, and clients are not authenticated; make keys with "
            f"`shardfeed keygen` and pass `--curve FILE`, or pass {way_out}"
        )
    raise ConfigError(
        f"{key}: {url!r} can be reached from other machines, and {scheme}:// has no encryption and knows no clients; "
        f"pass {way_out}"
    )
