"""Work done one task ahead, in a thread beside the one that uses it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def one_ahead(function: Callable[[Task], Result], tasks: Iterable[Task]) -> Generator[Result, None, None]:
    """``function(task)`` of each task, in order, the next one made while one is in use.

    At most one is there that was not asked for yet. An error is raised where its result is asked for. The thread ends
    with the generator, whether that is used up, closed, or left by an error; what it is at then is finished first.
    """
    waiting = iter(tasks)
    with ThreadPoolExecutor(1, "la-core-ahead") as thread:
        for task in waiting:
            coming = thread.submit(function, task)
            break
        else:
            return
        for task in waiting:
            result = coming.result()
            coming = thread.submit(function, task)
            yield result
            del result  # while the next one is awaited, it would be one more
        yield coming.result()
