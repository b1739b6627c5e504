"""Time limits that a stalled machine cannot reach: an event loop's clock that leaves the stalls out."""

import asyncio
import contextlib

TICK_S, MOST_S = 0.05, 0.25


@contextlib.asynccontextmanager
async def steady():
    """Within the block the running loop's clock moves on by at most `MOST_S` between two turns of the loop.

    A tick keeps an idle loop turning, so waiting counts in full; what does not count is the time in which the process
    was stopped or had no CPU. Timeouts and deadlines of asyncio then measure what they should, the other side.
    """
    loop = asyncio.get_running_loop()
    real = loop.time
    seen = now = real()

    def time():
        nonlocal seen, now
        moment = real()
        now, seen = now + min(moment - seen, MOST_S), moment
        return now

    async def tick():
        while True:  # noqa: ASYNC110 - nothing to wait for: the turns themselves are wanted
            await asyncio.sleep(TICK_S)

    loop.time = time
    ticking = asyncio.ensure_future(tick())
    try:
        yield
    finally:
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)
        del loop.time  # the class's own again; what was set on this clock comes a little early, never late
