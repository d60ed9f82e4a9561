"""What loader servers on Ray are called, so that trainers find them: named actors are the only register there is."""

from __future__ import annotations

import re

from shardfeed_wire.errors import ConfigError

__all__ = ["RAY", "RAY_NAMESPACE", "actor_name", "check_deployment", "number_of"]

RAY = "ray://"
"""What an endpoint begins with that is the servers of a deployment on Ray: ``ray://NAME``."""

RAY_NAMESPACE = "shardfeed"
"""Ray's namespace of the actors that are loader servers."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def check_deployment(name: str) -> str:
    """Return a deployment's name. Raises ConfigError where it is none."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"deployment {name!r}: a name has up to 63 letters, digits, dots, hyphens and underscores")
    return name


def actor_name(deployment: str, number: int) -> str:
    """Return the name of a deployment's actor, numbered from 0."""
    return f"{deployment}/{number}"


def number_of(deployment: str, actor: str) -> int | None:
    """Return an actor's number, or None where it belongs to another deployment."""
    name, _, number = actor.rpartition("/")
    return int(number) if name == deployment and number.isdecimal() else None
