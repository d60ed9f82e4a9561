"""Tensorcom's Connection sends numbered batches for as long as its standard input is open.

Arguments: the URL, ``single`` or ``multipart``, and seconds between batches.
"""

import sys
import threading
import time

import numpy as np
from tensorcom import Connection

connection = Connection(sys.argv[1], multipart=sys.argv[2] == "multipart", infos=["image", "label"])


def send() -> None:
    for number in range(100_000):
        images = np.full((4, 100, 100, 3), number % 256, np.uint8)
        connection.send([images, np.array([number, -1, 2, 3], np.int32)])
        time.sleep(float(sys.argv[3]))


threading.Thread(target=send, daemon=True).start()
sys.stdin.read()
