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
    room: int = 1,
    size: Callable[[Out], int] = lambda result: 1,
) -> Generator[Out]:
    """``function(item)`` of each item in order, computed by `executor` while earlier results are used.

    At most `most` results wait; while those that wait fill `room`, no further one is made.
    """
    gate = _Gate(room)

    def make(item: In) -> tuple[Out, int]:
        gate.wait()
        result = function(item)
        filled = size(result)
        gate.change(filled)
        return result, filled

    def take() -> Out:
        result, filled = waiting.popleft().result()
        gate.change(-filled)
        return result

    waiting: deque[Future[tuple[Out, int]]] = deque()
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
    """Closed while the room is full."""

    def __init__(self, room: int) -> None:
        self._condition, self._left, self._opened = Condition(), room, False

    def wait(self) -> None:
        """Until there is room."""
        with self._condition:
            self._condition.wait_for(lambda: self._opened or self._left > 0)

    def change(self, filled: int) -> None:
        """So much more is filled."""
        with self._condition:
            self._left -= filled
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
    room: int = 1,
    size: Callable[[In], int] = lambda item: 1,
) -> Iterator[Out]:
    """``function(item)`` of each item in order, computed by `executor` while the next items are made.

    At most `most` items wait, and one alone where they fill `room`.
    """
    waiting: deque[tuple[Future[Out], int]] = deque()
    for item in items:
        waiting.append((executor.submit(function, item), size(item)))
        while len(waiting) > 1 and (len(waiting) > most or sum(filled for _, filled in waiting) >= room):
            yield waiting.popleft()[0].result()
    while waiting:
        yield waiting.popleft()[0].result()
