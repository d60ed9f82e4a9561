"""`shardfeed ray`: loader servers that a Ray cluster places and restarts."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardfeed_wire.errors import ConfigError

if TYPE_CHECKING:
    from shardfeed_server.ray_actor import State

__all__ = ["commands"]

_Name = Annotated[str, typer.Option("--name", help="The deployment's name; trainers read ray://NAME.")]
_Address = Annotated[
    str | None, typer.Option("--address", help="The cluster, HOST:6379.  [default: RAY_ADDRESS, or the one here]")
]
_Wait = Annotated[float, typer.Option("--wait", min=0.0, help="Seconds until the servers must be ready.")]

commands = typer.Typer(no_args_is_help=True)


@commands.callback()
def _ray() -> None:
    """Loader servers on a Ray cluster: start, look at, scale, end."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("Ray is not installed here; install it with `pip install 'shardfeed[server,ray]'`")


@commands.command("up")
def _up(
    config: Annotated[Path, typer.Option("--config", help="The TOML file that says what each server serves.")],
    servers: Annotated[
        int | None,
        typer.Option(min=1, help="How many.  [default: one a unit of --resource, else one a node]"),
    ] = None,
    resource: Annotated[
        str | None, typer.Option(help="Ray's resource that marks the data nodes; each server takes one unit of it.")
    ] = None,
    cpus: Annotated[
        int | None, typer.Option(min=1, help="CPUs that each server takes, one a worker.  [default: workers, or 1]")
    ] = None,
    name: _Name = "default",
    address: _Address = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow addresses that other machines reach, without authentication.")
    ] = False,
    wait: _Wait = 300.0,
) -> None:
    """Start a deployment: one loader server an actor, spread over the nodes, restarted when it or its node dies."""
    from shardfeed_server.config import load_config
    from shardfeed_server.ray_actor import Placement
    from shardfeed_server.ray_deployment import Deployment, on_ray

    read = load_config(config.absolute(), {"insecure": True} if insecure else None)
    placement = Placement(cpus=cpus or read.workers or 1, resource=resource)
    with on_ray(address):
        deployment = Deployment(name)
        count = deployment.up(read, placement, servers)
        _wait(name, count, wait)
        states = deployment.states()
    print(f"deployment {name}: {count} servers; trainers read ray://{name}")
    _print_states(states)


@commands.command("status")
def _status(
    name: _Name = "default",
    address: _Address = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """Say where the servers of a deployment are, and how they are."""
    import msgspec

    from shardfeed_server.ray_deployment import Deployment, on_ray

    with on_ray(address):
        states = Deployment(name).states()
    if as_json:
        print(json.dumps({"name": name, "servers": msgspec.to_builtins(states, str_keys=True)}))
    elif states:
        _print_states(states)
    else:
        raise ConfigError(f"there is no deployment {name!r}; start it with `shardfeed ray up --config FILE`")


@commands.command("scale")
def _scale(
    name: Annotated[str, typer.Argument(help="The deployment's name.")],
    servers: Annotated[int, typer.Argument(min=1, help="How many servers it shall have.")],
    address: _Address = None,
    wait: _Wait = 300.0,
) -> None:
    """Start further servers, or end some; trainers follow while they train."""
    from shardfeed_server.ray_deployment import Deployment, on_ray

    with on_ray(address):
        before = Deployment(name).scale(servers)
        _wait(name, servers, wait)
    print(f"deployment {name}: {servers} servers, it had {before}")


@commands.command("down")
def _down(name: _Name = "default", address: _Address = None) -> None:
    """End a deployment; requests under way are answered."""
    from shardfeed_server.ray_deployment import Deployment, on_ray

    with on_ray(address):
        count = Deployment(name).down()
    print(f"deployment {name}: {count} servers ended" if count else f"there was no deployment {name}")


def _wait(name: str, servers: int, patience: float) -> None:
    from shardfeed_cli.progress import Meter
    from shardfeed_server.ray_deployment import Deployment

    with Meter("servers") as meter:
        Deployment(name).wait(servers, patience, lambda ready, count: meter.show(f"deployment {name}", ready, count))


def _print_states(states: dict[int, State | str]) -> None:
    for number, state in states.items():
        if isinstance(state, str):
            print(f"  server {number}: {state}")
            continue
        streams = ", ".join(state.streams)
        print(
            f"  server {number}: {', '.join(state.endpoints)}; streams {streams}, {state.samples:,} samples, "
            f"{state.workers} workers, node {state.node[:12]}"
        )
