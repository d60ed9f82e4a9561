"""The programs on the page about plain streams run: its sender's batches reach its receiver."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/howto/plain-streams.md"
IMPORTABLE = os.pathsep.join(str(ROOT / folder) for folder in ("wire", "client"))


def test_the_pages_sender_feeds_the_pages_receiver() -> None:
    programs = dict(re.findall(r"^```python (\w+)\n((?:.*\n)*?)```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", programs[name].replace("7890", port)],
            env={**os.environ, "PYTHONPATH": IMPORTABLE},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in ("receiver", "sender")
    ]
    try:
        (received, _), (sent, _) = [process.communicate(timeout=50) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert sent == ""
    labels = [list(range(start, start + 10)) for start in range(0, 100, 10)]
    assert received.splitlines() == [f"torch.Size([10, 3]) {row}" for row in labels]
