"""`shardfeed keygen`: CURVE keys for servers and trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["keygen"]


def keygen(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the keys.")],
    client: Annotated[
        list[str] | None,
        typer.Option(help="A client to make keys for and to let in; repeatable.  [default: trainer, at first]"),
    ] = None,
    stream: Annotated[
        list[str] | None, typer.Option(help="A stream that it may read; repeatable.  [default: every one]")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Make a client's keys only, for servers with this public key."),
    ] = None,
) -> None:
    """Make CURVE keys, with which a server and its clients know each other and encrypt what they say.

    Makes DIR/server.toml where there is none, a file DIR/NAME.toml for each client, and lets it in by a file
    in DIR/clients. With --server it is the client that makes its keys, and sends the server's admin the file
    to be put there.
    """
    from shardfeed_wire.curve import load_server_keys
    from shardfeed_wire.errors import ConfigError
    from shardfeed_wire.keygen import make_client, make_server

    if server is not None:
        for name in client or ["trainer"]:
            made = make_client(folder, name, server, streams=stream or ())
            print(f"{made.file}: this client's secret; it stays here, for curve={str(made.file)!r}")
            print(f"next: on the servers, put this into the folder of clients, as {name}.toml:\n{made.text}", end="")
        return
    file = folder / "server.toml"
    new = not file.exists()
    if new:
        make_server(folder)
        print(f"{file}: the servers' secret; copy it and {folder / 'clients'} to the servers, and nowhere else")
    if stream and not new and not client:
        raise ConfigError(
            f"--stream says what new clients may read, and {folder} has its keys already; add --client NAME"
        )
    keys = load_server_keys(file)
    for name in client or (["trainer"] if new else []):
        made = make_client(folder, name, keys.public.decode(), streams=stream or (), allowed=keys.clients.path)
        print(f"{made.file}: the secret of client {name!r}; move it to where it trains")
        what = f"stream {', '.join(stream)}" if stream else "every stream"
        print(f"{made.allowed}: lets it in, to {what}; delete it to end that")
    print(f"the servers' public key: {keys.public.decode()}")
    if new:
        print(f"next: shardfeed serve ... --bind tcp://0.0.0.0:7880 --curve {file}")
        print(f'next: RemoteDataset("tcp://HOST:7880", ..., curve="{(client or ["trainer"])[0]}.toml")')
