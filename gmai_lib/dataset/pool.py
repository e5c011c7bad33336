"""A pool of processes for the builder: results in order, few jobs at a time, no orphans.

    for result in ordered(work, jobs, processes=4): ...
    for record in counted(work, jobs, ledger, processes=4): ...

With one process everything happens here; results never depend on how many there are.
"""

import multiprocessing
import os
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial

from gmai_lib.schema import Ledger


def ordered(work: Callable, jobs: Iterable, *, processes: int = 1) -> Iterator:
    """Yield `work(job)` for every job, in the order of the jobs.

    At most `processes` + 1 jobs are taken from `jobs` ahead of what was yielded, so memory does not
    grow with their number. `work` and the jobs must be picklable if there is more than one process.

    Raises ValueError if `processes` is not positive or `work` cannot be sent to another process,
    RuntimeError if a process was killed.
    """
    if processes < 1:
        raise ValueError(f"processes {processes} is not positive")
    if processes == 1:
        yield from map(work, jobs)
        return
    try:
        pickle.dumps(work)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise ValueError(f"cannot be sent to another process, use one ({error})") from error
    # Fresh processes: forking one that has run torch threads can hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_leave_with_parent)
    try:
        waiting = deque()
        for job in jobs:
            waiting.append(pool.submit(work, job))
            if len(waiting) > processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"one of {processes} processes was killed, perhaps for memory; run again, with fewer "
            "processes if it happens again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def counted(work: Callable, jobs: Iterable, ledger: Ledger, *, processes: int = 1) -> Iterator:
    """Yield what the generators `work(ledger, job)` yield, in order; `ledger` gets all counts."""
    if processes == 1:
        for job in jobs:
            yield from work(ledger, job)
        return
    for found, own in ordered(partial(_collected, work), jobs, processes=processes):
        ledger.merge(own)
        yield from found


def _collected(work: Callable, job) -> tuple[list, Ledger]:
    ledger = Ledger()
    return list(work(ledger, job)), ledger


def _leave_with_parent():
    """End this process when its parent is gone: a pool would wait for ever for its next job."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
