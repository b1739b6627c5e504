"""The clock of the fault proofs: waiting counts, a stall does not."""

import asyncio
import time

import pytest
from steady_clock import steady


async def test_a_stall_does_not_use_up_a_limit_and_waiting_does():
    real = asyncio.get_running_loop().time
    async with steady():
        async with asyncio.timeout(1.0):
            time.sleep(1.5)  # noqa: ASYNC251 - the whole process, as without CPU
            await asyncio.sleep(0.01)
        started = time.perf_counter()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.4):
                await asyncio.Event().wait()
        assert time.perf_counter() - started >= 0.4
    assert asyncio.get_running_loop().time == real
