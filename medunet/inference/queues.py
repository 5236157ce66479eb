"""Work of a thread before and behind that of another, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def ahead(
    executor: ThreadPoolExecutor,
    function: Callable[[In], Out],
    items: Iterable[In],
    most: int = 1,
    small: Callable[[Out], bool] = lambda result: False,
) -> Generator[Out]:
    """``function(item)`` of each item in order, computed by `executor` while earlier results are used.

    One result waits, or up to `most` where they are `small`: while another waits, no further one is made.
    """
    gate = _Gate()

    def make(item: In) -> tuple[Out, bool]:
        gate.wait()
        result = function(item)
        large = not small(result)
        gate.change(large)
        return result, large

    def take() -> Out:
        result, large = waiting.popleft().result()
        gate.change(-large)
        return result

    waiting: deque[Future[tuple[Out, bool]]] = deque()
    try:
        for item in items:
            waiting.append(executor.submit(make, item))
            if len(waiting) > most:
                yield take()
        while waiting:
            yield take()
    finally:
        for future in waiting:
            future.cancel()
        gate.open()


class _Gate:
    """Closed while something large waits."""

    def __init__(self) -> None:
        self._condition, self._large, self._opened = Condition(), 0, False

    def wait(self) -> None:
        """Until nothing large waits."""
        with self._condition:
            self._condition.wait_for(lambda: self._opened or not self._large)

    def change(self, large: int) -> None:
        """So many more wait."""
        with self._condition:
            self._large += large
            self._condition.notify_all()

    def open(self) -> None:
        """For good."""
        with self._condition:
            self._opened = True
            self._condition.notify_all()


def behind(
    executor: ThreadPoolExecutor,
    function: Callable[[In], Out],
    items: Iterable[In],
    most: int = 1,
    small: Callable[[In], bool] = lambda item: False,
) -> Iterator[Out]:
    """``function(item)`` of each item in order, computed by `executor` while the next items are made.

    One item waits, or up to `most` where they are `small`.
    """
    waiting: deque[tuple[Future[Out], bool]] = deque()
    for item in items:
        large = not small(item)
        waiting.append((executor.submit(function, item), large))
        while len(waiting) > (1 if any(large for _, large in waiting) else most):
            yield waiting.popleft()[0].result()
    while waiting:
        yield waiting.popleft()[0].result()
