"""Clients that ask for all they may and read no answer. Arguments: the server's URL, how many, and the batch size."""

from __future__ import annotations

import json
import sys

import numpy as np
import zmq

from shardfeed.inquiry import ask_server
from shardfeed_wire.messages import PROTOCOL_VERSION, Get, Hello, pack

REQUESTS = 64


def main() -> None:
    url, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    (stream,) = ask_server(url).streams
    rows = [np.zeros(size, np.uint32), np.zeros(size, np.uint16)]
    with zmq.Context() as context:
        sockets = []
        for number in range(count):
            socket = context.socket(zmq.DEALER)
            socket.set(zmq.RCVHWM, 1)
            socket.set(zmq.LINGER, 0)
            socket.connect(url)
            socket.send_multipart(pack(Hello(version=PROTOCOL_VERSION, job=f"stuck-{number}"), []))
            for request in range(1, REQUESTS + 1):
                # Each with a seed of its own: equal requests would share one answer, and take less memory.
                get = Get(
                    request=request,
                    stream=stream.name,
                    data=stream.data,
                    recipe=stream.recipe,
                    seed=number,
                    epoch=request,
                )
                socket.send_multipart(pack(get, rows))
            sockets.append(socket)
        print(json.dumps({"ready": True}), flush=True)
        sys.stdin.read()
        for socket in sockets:
            socket.close()


if __name__ == "__main__":
    main()
