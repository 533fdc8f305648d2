"""Items of many requests -> batches for one model thread.

Everything but the model runs on the event loop, so nothing is locked. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Generic, TypeVar

from llama_index_colqwen.serving.handler import run_each

__all__ = ["Batcher"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Batcher(Generic[_Item, _Result]):
    """Put items together as they come; what waits while the model is busy is its next batch.

    Where the model is free, an item waits for others only while `expecting()` says that some are on their way, and
    `max_wait` at most. An item whose batch fails is tried again alone, so that one client's error is not another's.

    Args:
        run: Called in the model's thread with at most `most` items, in the order they came.
        executor: The model's thread.
        turns: Shared by the batchers of a model, which so take turns.
        most: Items a batch.
        max_wait: In seconds.
        expecting: Whether more items may come soon.
        observe: Told the size of each batch, and the seconds that it took.
    """

    def __init__(
        self,
        run: Callable[[list[_Item]], list[_Result]],
        executor: Executor,
        turns: asyncio.Lock,
        *,
        most: int,
        max_wait: float,
        expecting: Callable[[], bool],
        observe: Callable[[int, float], None],
    ) -> None:
        """See the class."""
        self._run, self._executor, self._turns = run, executor, turns
        self._most, self._max_wait, self._expecting, self._observe = most, max_wait, expecting, observe
        self._waiting: deque[tuple[_Item, asyncio.Future[_Result]]] = deque()
        self._news = asyncio.Event()

    async def put(self, item: _Item) -> _Result:
        """Return the item's result, or raise its error; an item whose caller is cancelled meanwhile is dropped."""
        future: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._news.set()
        return await future

    def notice(self) -> None:
        """Look again whether more is expected."""
        self._news.set()

    async def work(self) -> None:
        """Make batches until cancelled."""
        while True:
            while self._waiting:
                await self._gather()
                async with self._turns:
                    await self._run_batch()
            self._news.clear()
            await self._news.wait()

    async def _gather(self) -> None:
        """Wait for more items, if the model is free and more are on their way."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._max_wait
        while len(self._waiting) < self._most and not self._turns.locked() and self._expecting():
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), deadline - loop.time())
            except asyncio.TimeoutError:
                return

    async def _run_batch(self) -> None:
        batch: list[tuple[_Item, asyncio.Future[_Result]]] = []
        while self._waiting and len(batch) < self._most:
            item, future = self._waiting.popleft()
            if not future.done():
                batch.append((item, future))
        if not batch:
            return
        loop = asyncio.get_running_loop()
        started = loop.time()
        results = await loop.run_in_executor(self._executor, run_each, self._run, [item for item, _ in batch])
        self._observe(len(batch), loop.time() - started)
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
