"""A peer answers each message on a ZeroMQ socket with the same arrays and names, read and written by its own codec.

Arguments: the module, the endpoint to connect to, ``single`` or ``multipart``, and how many messages to answer.
"""

import importlib
import sys

import zmq

tenbin = importlib.import_module(sys.argv[1])
framing = sys.argv[3]
receive, send = getattr(tenbin, f"zrecv_{framing}"), getattr(tenbin, f"zsend_{framing}")
with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
    socket.connect(sys.argv[2])
    for _ in range(int(sys.argv[4])):
        arrays, names = receive(socket, infos=True)
        send(socket, arrays, infos=names)
    socket.recv()  # until the other has all of it
