"""shardfeed's side: a `RemoteDataset` over a server that runs already. Arguments: its URL, and the batch size."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from rounds import answer
from shardfeed import RemoteDataset


def main() -> None:
    url, batch_size = sys.argv[1], int(sys.argv[2])
    with RemoteDataset(url, batch_size=batch_size) as dataset:

        def one_pass(look: bool) -> Iterator[tuple[Any, Any]]:
            yield from dataset

        answer(one_pass)


if __name__ == "__main__":
    main()
