"""A server that waits for its peers for moments, so that a test need not wait for minutes; else as a user has it.

``python -m tests.system.impatient_server SILENT UNREAD SHARD...``, in seconds, ends with its standard input.
"""

from __future__ import annotations

import logging
import sys

from shardfeed_server.conduct import Patience
from shardfeed_server.config import ServerConfig, StreamConfig
from shardfeed_server.serve import Observer, Serving, serve


def ready(serving: Serving) -> None:
    print(serving.endpoints[0], flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    stream = StreamConfig(shards=tuple(sys.argv[3:]), fields="jpg cls", transforms=("resize=64x64",))
    config = ServerConfig(
        streams={"default": stream}, bind=("tcp://127.0.0.1:0",), workers=1, send_bytes=1 << 20, http="off"
    )
    serve(config, Observer(ready=ready), end_with=0, patience=Patience(float(sys.argv[1]), float(sys.argv[2])))
