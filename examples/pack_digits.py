"""Pack the demo's digits into a folder, once: four shards to train with, one that is held out, and their manifests."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from demo import pack

from webdataset.indexing import index_shards
from webdataset.manifest import BLOCK_BYTES


def main() -> None:
    folder = Path(sys.argv[1])
    manifests = {name: folder / f"{name}.manifest" for name in ("train", "val")}
    if all(manifest.exists() for manifest in manifests.values()):
        print(f"{folder} is packed already")
        return
    with tempfile.TemporaryDirectory(dir=folder) as packed:
        pack(Path(packed))
        for shard in sorted(Path(packed).iterdir()):
            shard.rename(folder / shard.name)
    for name, manifest in manifests.items():
        shards = [str(shard) for shard in sorted(folder.glob(f"{name}-*.tar"))]
        index_shards(shards, block_bytes=BLOCK_BYTES).save(manifest)
    print(f"packed 1,797 scanned digits into {folder}")


if __name__ == "__main__":
    main()
