"""A peer reads every .ten file of a folder with its own codec, and writes back what it read.

Arguments: the module (``tensorcom.tenbin`` or ``webdataset.tenbin``) and the folder. For ``x.ten`` it writes
``x.npz``, the arrays it read as ``0:name``, ``1:name``, ...; ``x.again``, its own encoding of them; ``x.buffer``,
the same by its encode_buffer. It prints the dtype codes that it can encode.
"""

import importlib
import sys
from pathlib import Path

import numpy as np

tenbin = importlib.import_module(sys.argv[1])
for path in Path(sys.argv[2]).glob("*.ten"):
    arrays, names = tenbin.load(str(path), infos=True)
    np.savez(path.with_suffix(".npz"), **{f"{i}:{n}": a for i, (n, a) in enumerate(zip(names, arrays, strict=True))})
    tenbin.save(str(path.with_suffix(".again")), *arrays, infos=names, nocheck=True)
    path.with_suffix(".buffer").write_bytes(tenbin.encode_buffer(arrays, infos=names))


def knows(code: str) -> bool:
    """Encode and decode one array."""
    try:
        (got,) = tenbin.decode_buffer(tenbin.encode_buffer([np.ones(2, code)]))
    except (AssertionError, ValueError):
        return False
    return got.dtype == np.dtype(code)


print(*(code for code in ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"] if knows(code)))
