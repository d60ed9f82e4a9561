"""A TCP proxy whose way back is narrow: what the server sends goes on at so many bytes a second.

``python narrow_proxy.py PORT BYTES_A_SECOND`` forwards to 127.0.0.1:PORT, and prints the port that it listens on.
"""

from __future__ import annotations

import asyncio
import sys


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rate: float) -> None:
    try:
        while data := await reader.read(4096):
            if rate:
                await asyncio.sleep(len(data) / rate)
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()


async def _main(port: int, rate: float) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port, limit=4096)
        await asyncio.gather(_pump(reader, back, 0), _pump(there, writer, rate))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), float(sys.argv[2])))
