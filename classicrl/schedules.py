"""Schedules: plain functions of the step."""


def linear(step: int, *, start: float, end: float, duration_steps: int) -> float:
    """Value that goes from ``start`` at step 0 to ``end`` at ``duration_steps``, then stays.

    >>> linear(250, start=1.0, end=0.0, duration_steps=1_000)
    0.75
    """
    if step >= duration_steps:
        return end
    return start + (end - start) * step / duration_steps


def crossings(before: int, after: int, period: int) -> int:
    """How many multiples of ``period`` lie in ``(before, after]``.

    A vector step advances the count by the number of environments, so ``step % period == 0`` would
    miss most of them.

    >>> crossings(6, 14, 4)  # 8 and 12 were passed
    2
    """
    return after // period - before // period
