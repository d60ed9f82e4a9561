"""The next epoch is planned in another thread, while there are any."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from shardfeed.ahead import Ahead


def test_where_the_interpreter_ends_and_starts_no_thread_any_more_nothing_is_begun() -> None:
    unused: Any = None

    async def begin() -> Ahead:
        ended = ThreadPoolExecutor()
        ended.shutdown()
        asyncio.get_running_loop().set_default_executor(ended)
        ahead = Ahead(unused, unused, unused)
        await asyncio.wait_for(ahead._planning, 10)
        return ahead

    assert asyncio.run(begin()).fetching is None
