"""A TCP proxy that makes a server far away: every byte arrives ``delay`` seconds later, and no fewer of them.

``python far_proxy.py PORT SECONDS`` forwards to 127.0.0.1:PORT, and prints the port that it listens on.
"""

from __future__ import annotations

import asyncio
import sys


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    loop = asyncio.get_running_loop()
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(4096)

    async def deliver() -> None:
        while True:
            due, data = await under_way.get()
            await asyncio.sleep(due - loop.time())
            if not data:
                writer.close()
                return
            writer.write(data)
            await writer.drain()

    delivering = asyncio.create_task(deliver())
    try:
        while data := await reader.read(1 << 18):
            await under_way.put((loop.time() + delay, data))
    except ConnectionError:
        pass
    await under_way.put((loop.time() + delay, b""))
    try:
        await delivering
    except ConnectionError:
        writer.close()


async def _main(port: int, delay: float) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_pump(reader, back, delay / 2), _pump(there, writer, delay / 2))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), float(sys.argv[2])))
