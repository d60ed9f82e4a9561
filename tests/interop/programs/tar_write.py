"""PyPI's webdataset writes a shard. Arguments: the shard to write, and a .npz of images, one a sample."""

import sys

import numpy as np

import webdataset as wds

with np.load(sys.argv[2]) as images, wds.TarWriter(sys.argv[1]) as writer:
    for number, name in enumerate(images):
        writer.write(
            {
                "__key__": f"folder/{name}",
                "png": images[name],
                "cls": number,
                "txt": f"grün {number}",
                "json": {"n": [number, None]},
                "mp": {"n": number},
                "npy": images[name].astype("f4"),
                "npz": {"a": images[name]},
                "ten": [images[name].astype("i8"), np.zeros((0, 2), "f4")],
                "left.seg.png": images[name][::-1].copy(),
                "bytes": bytes([number]) * 700,
            }
        )
