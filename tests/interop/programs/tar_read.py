"""PyPI's webdataset reads a shard, and prints the samples as JSON. Arguments: the shard, an imagespec or ``raw``."""

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
from as_json import told

import webdataset as wds

dataset = wds.WebDataset(sys.argv[1], shardshuffle=False)
if sys.argv[2] != "raw":
    dataset = dataset.decode(sys.argv[2])
print(json.dumps([told(sample) for sample in dataset]))
