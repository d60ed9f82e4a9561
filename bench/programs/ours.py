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
    with RemoteDataset(url, batch_size=int(batch_size), shared_memory=path == "shared") as dataset:

        def one_pass(look: bool) -> Iterator[tuple[Any, Any]]:
            for rows, numbers in dataset:
                if touch:
                    rows.view(-1)[::PAGE].sum()
                yield rows, numbers

        answer(one_pass)


if __name__ == "__main__":
    main()
