"""The one place where dask clients are made: a local cluster, or the scheduler that the environment names."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import dask
from distributed import Client, KilledWorker, LocalCluster, as_completed

from tipline.errors import TiplineError, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# Its start and end are a page of lines at level INFO.
logging.getLogger("distributed").setLevel(logging.WARNING)

T = TypeVar("T")

ADDRESS = "DASK_SCHEDULER_ADDRESS"
WAIT_SECONDS = 30
# dask lets glibc return memory at once (64 KiB); every temporary array is then mapped and cleared anew, which doubled
# the time of the arithmetic. Blocks are bounded, so keeping a few of them costs little.
KEPT = {f"distributed.nanny.pre-spawn-environ.MALLOC_{name}_THRESHOLD_": 1 << 28 for name in ("TRIM", "MMAP")}


@contextlib.contextmanager
def connect(workers: int) -> Iterator[Client]:
    """Give a client: of the scheduler in DASK_SCHEDULER_ADDRESS, else of `workers` new processes (0: one a core).

    A local cluster listens on 127.0.0.1 only, its dashboard too, and ends with the block.

    Raises
    ------
    TiplineError
        Where the scheduler cannot be reached, or has no worker within half a minute.
    """
    if os.environ.get(ADDRESS):
        with remote(os.environ[ADDRESS]) as client:
            yield client
        return
    count = workers or len(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        with without_interrupts(), dask.config.set(KEPT):
            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=count,
                    threads_per_worker=1,
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                    # A heartbeat that meets a closing scheduler is logged with its trace as an error; what fails in
                    # a task comes back with the task.
                    silence_logs=logging.CRITICAL,
                )
            )
        yield stack.enter_context(Client(cluster))


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """Let processes that start in this block ignore Ctrl-C.

    A terminal sends it to all of them; the workers are ended by the driver, and would only print a trace each.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def remote(address: str) -> Iterator[Client]:
    """A client of a running scheduler."""
    todo = f"Start it, or unset {ADDRESS} to use this machine."
    try:
        client = Client(address, timeout=WAIT_SECONDS)
    except (OSError, TimeoutError, ValueError) as error:  # ValueError: the address is none
        raise TiplineError(f"The dask scheduler does not answer: {error}.", address, todo) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=WAIT_SECONDS)
        except TimeoutError as error:
            raise TiplineError("The dask scheduler has no workers.", address, "Start one.") from error
        yield client


def each(client: Client, task: Callable[[T], Any], items: Sequence[T]) -> Iterator[tuple[T, Any]]:
    """Run a task for each item on the workers; give items and results, or the exceptions, as they come.

    A task that takes its worker down with it is tried some times, and can take others of the same worker with it. So
    those that ended like that run once more at the end, one at a time: then it is clear whose fault it is.

    Raises
    ------
    TiplineError
        Where the scheduler goes away.
    """
    killed = []
    futures = dict(zip(client.map(task, items, pure=False, retries=1), items, strict=True))
    for future in as_completed(list(futures)):
        item = futures.pop(future)
        result = outcome(future)
        if isinstance(result, KilledWorker):
            killed.append(item)
        else:
            yield item, result
        future.release()
    for item in killed:
        result = outcome(client.submit(task, item, pure=False))
        yield item, told(result) if isinstance(result, KilledWorker) else result


def outcome(future: Any) -> Any:  # noqa: ANN401 (what a task returns)
    """A task's result or exception."""
    error = future.exception()
    if future.status in {"cancelled", "lost"}:
        what = f"The dask scheduler is gone: {one_line(error)}."
        raise TiplineError(what, os.environ.get(ADDRESS, "the local cluster"), "Start it and run it again.")
    return future.result() if error is None else error


def told(error: KilledWorker) -> TiplineError:
    """What a dead worker means, in words."""
    what = "Every worker that took this block died: out of memory, most likely, or killed."
    todo = "Give the workers more memory: a smaller `score.workers`, a larger --memory-limit."
    return TiplineError(what, str(error.last_worker.address), todo)


def peak_bytes() -> int:
    """Most memory that this process ever held (VmHWM); `ru_maxrss` would count what its parent held, too."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
