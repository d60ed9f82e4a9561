"""NVIDIA DALI on the CPU: its webdataset reader, decoder and resize. Arguments: threads, batch size, and the shards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from rounds import answer


@pipeline_def
def pictures(shards: list[str]) -> Any:
    jpeg, label = fn.readers.webdataset(paths=shards, ext=["jpg", "cls"], name="reader")
    picture = fn.decoders.image(jpeg, device="cpu", output_type=types.RGB, jpeg_fancy_upsampling=True)
    picture = fn.resize(
        picture, resize_x=224, resize_y=224, interp_type=types.INTERP_LINEAR, antialias=True, dtype=types.UINT8
    )
    return picture, fn.pad(label, fill_value=32)


def main() -> None:
    threads, batch_size, shards = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    pipe = pictures(shards, batch_size=batch_size, num_threads=threads, device_id=None)
    pipe.build()
    total = pipe.reader_meta("reader")["epoch_size"]

    def one_pass(look: bool) -> Iterator[tuple[Any, Any]]:
        for _ in range(total // batch_size):
            rows, labels = pipe.run()
            text = np.asarray(labels.as_tensor())
            # The pipeline takes its memory back with the next run, so the trainer's batch is a copy.
            yield torch.from_numpy(np.array(rows.as_tensor())), [int(bytes(row)) for row in text]

    answer(one_pass)


if __name__ == "__main__":
    main()
