"""How many requests an endpoint gets at once: grows slowly, shrinks fast (AIMD, as TCP does).

Nobody knows a server's capacity beforehand, and it changes with the length of prompts and with other
users. What a server says when it is too much (429, 503) is the one signal there is.
"""

from __future__ import annotations

SHRINK = 0.5


class AdaptiveLimit:
    """The limit of one endpoint, between 1 and `ceiling`; it starts at the ceiling, which somebody chose.

    Args:
        ceiling: The most requests at once.
    """

    def __init__(self, ceiling: int) -> None:
        self._ceiling = float(ceiling)
        self._limit = float(ceiling)
        self._shrunk_at = float("-inf")

    @property
    def now(self) -> int:
        """Requests allowed at once, at least 1."""
        return int(self._limit)

    def grow(self, under_way: int) -> None:
        """A request succeeded; one more is allowed after a whole round of successes.

        Args:
            under_way: Requests at that moment, this one included: a limit that is not reached teaches nothing.
        """
        if under_way >= self.now:
            self._limit = min(self._ceiling, self._limit + 1.0 / self._limit)

    def shrink(self, sent_at: float, now: float, under_way: int) -> None:
        """The server was overloaded; half of what was under way is allowed from now on.

        Args:
            sent_at: When the request was sent. One sent before the last cut says nothing about the limit since.
            now: The time, on the same clock.
            under_way: Requests at that moment, this one included.
        """
        if sent_at >= self._shrunk_at:
            self._limit = max(1.0, SHRINK * min(self._limit, float(under_way)))
            self._shrunk_at = now


def share_of(total: int, workers: int, index: int | None = None) -> int:
    """A worker's share of a job's limit; the shares of all workers sum to `total`, remainder included.

    At least 1: with more workers than `total`, the job's limit is the number of workers.

    Args:
        total: The job's limit.
        workers: Number of workers.
        index: Which of them, from 0; None: not known, which gets no part of the remainder.
    """
    base, extra = divmod(total, max(1, workers))
    return max(1, base + (index is not None and index < extra))
