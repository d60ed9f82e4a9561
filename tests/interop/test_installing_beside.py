"""`shardfeed-client` lies beside PyPI's webdataset, whichever is installed first, and both work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.environments import PEERS, fresh, install, run
from tests.webdataset.tars import write_tar

pytestmark = [pytest.mark.peers, pytest.mark.timeout(240)]

BOTH = """
import sys, webdataset as wds
read = [sample["cls"] for sample in wds.WebDataset(sys.argv[1], shardshuffle=False).decode("rgb8")]
assert read == [0, 1, 2], read
assert wds.__version__ == "1.0.2"

import shardfeed, shardfeed_wire
from shardfeed import RemoteDataset
try:
    list(RemoteDataset("tcp://127.0.0.1:1", stream="train", batch_size=1, connect_timeout=0.2))
except shardfeed_wire.errors.ConnectError as error:
    print("both work, beside", wds.__file__)
"""


@pytest.mark.parametrize("first", ["shardfeed-client", "webdataset"])
def test_the_client_leaves_pypis_webdataset_working_in_either_order(
    built: dict[str, Path], peer_wheels: Path, tmp_path: Path, first: str
) -> None:
    python = fresh(tmp_path / "venv")
    client, webdataset = built["shardfeed-client"], PEERS[0]
    for what in (client, webdataset) if first == "shardfeed-client" else (webdataset, client):
        install(python, what, wheels=peer_wheels)
    shard = write_tar(tmp_path / "x.tar", [(f"{number}.cls", str(number).encode()) for number in range(3)])
    assert "both work" in run(python, "-W", "ignore", "-c", BOTH, shard)
