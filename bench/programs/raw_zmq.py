"""Raw pyzmq: PUSH to PULL, a frame an array, no copy in Python on either side. Arguments: file, batch size."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
import zmq

from rounds import answer
from sender import passes, start


def serve(link: Connection, batches: list[tuple[Any, Any]]) -> None:
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        link.send(socket.bind_to_random_port("tcp://127.0.0.1"))
        for _ in passes(link):
            for rows, numbers in batches:
                socket.send(rows, zmq.SNDMORE, copy=False)
                socket.send(numbers, copy=False)


def main() -> None:
    link, count = start(serve)
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.connect(f"tcp://127.0.0.1:{link.recv()}")

        def one_pass(look: bool) -> Iterator[tuple[Any, Any]]:
            link.send("go")
            for _ in range(count):
                rows, numbers = socket.recv_multipart(copy=False)
                made = np.frombuffer(rows.buffer, np.uint8).reshape(-1, 224, 224, 3)
                yield torch.from_numpy(made), np.frombuffer(numbers.buffer, np.int32)

        answer(one_pass)


if __name__ == "__main__":
    main()
