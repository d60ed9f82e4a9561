"""tensorcom 0.1: its Connection, in its usual framing, a frame an array. Arguments: file, batch size."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch
from tensorcom import zcom

from rounds import answer
from sender import passes, start


def serve(link: Connection, batches: list[tuple[Any, Any]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    sender = zcom.Connection(f"zrpush://127.0.0.1:{port}", multipart=True)
    link.send(port)
    for _ in passes(link):
        for rows, numbers in batches:
            sender.send([rows, numbers])


def main() -> None:
    link, count = start(serve)
    receiver = zcom.Connection(f"zrpull://127.0.0.1:{link.recv()}", multipart=True)

    def one_pass(look: bool) -> Iterator[tuple[Any, Any]]:
        link.send("go")
        for _ in range(count):
            rows, numbers = receiver.recv()
            yield torch.from_numpy(rows), numbers

    answer(one_pass)


if __name__ == "__main__":
    main()
