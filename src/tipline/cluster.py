"""The one place where dask clients are made: a local cluster, or the scheduler that the environment names."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from typing import TYPE_CHECKING

from distributed import Client, LocalCluster

from tipline.errors import TiplineError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Its start and end are a page of lines at level INFO.
logging.getLogger("distributed").setLevel(logging.WARNING)

ADDRESS = "DASK_SCHEDULER_ADDRESS"
WAIT_SECONDS = 30


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
        with without_interrupts():
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
