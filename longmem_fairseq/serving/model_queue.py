"""One model for many clients: their requests wait in line for one thread."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any, AsyncIterator, Callable

from longmem_fairseq.serving.errors import RequestError

MOST_WAITING = 64  # requests, with the one that is answered


class Canceled(Exception):
    """Nobody waits for the answer any more."""


class Ticket:
    """A place in line. Whoever works on it calls :meth:`check` now and then."""

    def __init__(self, timeout: float):
        self.timeout, self.deadline = timeout, time.monotonic() + timeout
        self.canceled = Event()

    def check(self) -> None:
        """Lets the work go on, or ends it.

        Raises:
            Canceled: nobody waits for the answer any more
            RequestError: its time is over
        """
        if self.canceled.is_set():
            raise Canceled
        if time.monotonic() > self.deadline:
            message = (
                f"no answer within {self.timeout:g} seconds (--timeout): ask for less, or later"
            )
            raise RequestError(message, 503, code="timeout")


class ModelQueue:
    """Runs jobs one after another, in the order in which they came.

    Args:
        timeout: seconds after which a job that waits, or checks its ticket, is given up
    """

    def __init__(self, timeout: float):
        self.timeout, self.waiting = timeout, 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    async def run(self, job: Callable[[Ticket], Any]) -> Any:
        """Runs a job and returns its result. If the caller is canceled, so is the job.

        Raises:
            RequestError: too many are waiting, its time is over, or the job's own
        """
        ticket = Ticket(self.timeout)
        future = self._enter(ticket, job)
        try:
            return await asyncio.shield(future)
        finally:
            ticket.canceled.set()

    async def stream(
        self, job: Callable[[Ticket, Callable[[Any], None]], None]
    ) -> AsyncIterator[Any]:
        """The items that a job gives to its second argument, as they come; see :meth:`run`."""
        ticket, loop, items = Ticket(self.timeout), asyncio.get_running_loop(), asyncio.Queue()
        end = object()

        def emit(item: Any) -> None:
            loop.call_soon_threadsafe(items.put_nowait, item)

        future = self._enter(ticket, lambda ticket: job(ticket, emit))
        future.add_done_callback(lambda _: items.put_nowait(end))
        try:
            while (item := await items.get()) is not end:
                yield item
            future.result()
        finally:
            ticket.canceled.set()

    def close(self) -> None:
        """Waits for the job that runs; those that wait in line are dropped."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _enter(self, ticket: Ticket, job: Callable[[Ticket], Any]) -> asyncio.Future:
        if self.waiting >= MOST_WAITING:
            message = f"{self.waiting} requests are waiting already: try again later"
            raise RequestError(message, 429, code="queue_full")

        def work() -> Any:
            ticket.check()
            return job(ticket)

        self.waiting += 1
        future = asyncio.get_running_loop().run_in_executor(self._thread, work)
        future.add_done_callback(self._leave)
        return future

    def _leave(self, future: asyncio.Future) -> None:
        self.waiting -= 1
        if not future.cancelled():
            future.exception()  # seen, even if nobody waits for it any more
