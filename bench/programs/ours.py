"""shardfeed's side: a `RemoteDataset` over a server that runs already.

Arguments: its URL, the batch size, and ``tcp`` or ``shared``: how answers come. With ``touch`` behind them a byte
of each page of a batch is read, since memory that is only borrowed costs nothing until then.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from rounds import answer
from shardfeed import RemoteDataset

PAGE = 4096


def main() -> None:
    url, batch_size, path, *touch = sys.argv[1:]
    dataset = RemoteDataset(url, batch_size=int(batch_size), shared_memory=path == "shared")

    def connect() -> None:
        len(dataset)

    def one_pass(look: bool) -> Iterator[tuple[Any, Any]]:
        for rows, numbers in dataset:
            if touch:
                rows.view(-1)[::PAGE].sum()
            yield rows, numbers

    # Closed between two passes: what it fetches ahead of the next one would be work that no clock sees, in the
    # time of the other sides.
    answer(one_pass, before=connect, after=dataset.close)


if __name__ == "__main__":
    main()
