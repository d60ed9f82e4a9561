"""Tensorcom's Connection receives batches, and prints one line of JSON for each.

Arguments, again and again: a URL, ``single`` or ``multipart``, how many batches, and the arrays' names, with commas.
"""

import hashlib
import json
import sys

from tensorcom import Connection

arguments = iter(sys.argv[1:])
for url, framing, count, names in zip(*[arguments] * 4, strict=True):
    connection = Connection(url, multipart=framing == "multipart", infos=names.split(",") if names else None)
    for _ in range(int(count)):
        batch = connection.recv()
        described = [[a.dtype.name, list(a.shape), hashlib.sha256(a.tobytes()).hexdigest()] for a in batch]
        print(json.dumps([url, described]), flush=True)
    connection.close()
