"""Arrow Flight: a stream of record batches, without a copy in Python on either side. Arguments: file, batch size."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import pyarrow as pa
import torch
from pyarrow import flight

from rounds import answer
from sender import start


class Server(flight.FlightServerBase):
    def __init__(self, batches: list[tuple[Any, Any]]) -> None:
        super().__init__("grpc://127.0.0.1:0")
        self._batches = [
            pa.record_batch(
                [pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows[0].size), pa.array(numbers)],
                names=["rows", "numbers"],
            )
            for rows, numbers in batches
        ]

    def do_get(self, context: Any, ticket: Any) -> Any:
        return flight.GeneratorStream(self._batches[0].schema, iter(self._batches))


def serve(link: Connection, batches: list[tuple[Any, Any]]) -> None:
    server = Server(batches)
    link.send(server.port)
    server.serve()


def main() -> None:
    link, _ = start(serve)
    client = flight.connect(f"grpc://127.0.0.1:{link.recv()}")

    def one_pass(look: bool) -> Iterator[tuple[Any, Any]]:
        for chunk in client.do_get(flight.Ticket(b"")):
            rows, numbers = chunk.data.columns
            made = rows.flatten().to_numpy(zero_copy_only=True).reshape(-1, 224, 224, 3)
            yield torch.from_numpy(made), numbers.to_numpy()

    answer(one_pass)
    client.close()


if __name__ == "__main__":
    main()
