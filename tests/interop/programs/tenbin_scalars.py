"""A peer encodes 0-d arrays, which it can encode and not decode. Arguments: the module, and the file to write."""

import importlib
import sys
from pathlib import Path

import numpy as np

tenbin = importlib.import_module(sys.argv[1])
Path(sys.argv[2]).write_bytes(tenbin.encode_buffer([np.array(7, "u1"), np.array(-1.5, "f8")], infos=["a", ""]))
