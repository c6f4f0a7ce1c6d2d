"""The process that a local cluster's workers are forked from, started before all else.

It imports what workers need on one core while the driver reads its settings on another. Importing takes a second, which
each worker would spend for itself if it were spawned, and again after each restart.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from multiprocessing import forkserver
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

ADDRESS = "DASK_SCHEDULER_ADDRESS"
# Elsewhere there is no fork, or a fork without exec is not safe (macOS); workers are spawned there.
FORKED = sys.platform == "linux"
# Read when a process begins, so it cannot wait for the fork. One thread a worker; and dask lets glibc return memory at
# once (64 KiB): every temporary array is then mapped and cleared anew, which doubled the time of the arithmetic. Blocks
# are bounded, so keeping a few of them costs little.
ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1") | dict.fromkeys(
    ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(1 << 28)
)


def count_cpus() -> int:
    """Count the processors that this process may use."""
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def start_forkserver(module: str) -> bool:
    """Let the process begin to import dask and this module, unless it is there already.

    Returns
    -------
    bool
        Whether there is one. There is none where a scheduler elsewhere is used, and where there is no room for its
        socket: a full temporary folder, or one whose path is too long for a socket's name.
    """
    if not FORKED or os.environ.get(ADDRESS):
        return False
    forkserver.set_forkserver_preload(["distributed", module])
    try:
        with ignore_interrupts(), set_environment():
            forkserver.ensure_running()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def set_environment() -> Iterator[None]:
    """Give ENVIRONMENT to processes that start in this block."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def ignore_interrupts() -> Iterator[None]:
    """Let processes that start in this block ignore Ctrl-C.

    A terminal sends it to all of them; the workers are ended by the driver, and would only print a trace each. For that
    moment this process takes no notice, either: a blocked signal would be inherited as well, but multiprocessing
    unblocks it before it spawns.
    """
    with handle_interrupts(signal.SIG_IGN):
        yield


@contextlib.contextmanager
def defer_interrupts() -> Iterator[None]:
    """Let Ctrl-C wait for the end of the block; a cluster that is begun and not whole ends with a trace of dask's."""
    received: list[int] = []
    with handle_interrupts(lambda number, _: received.append(number)):
        yield
    if received:
        raise KeyboardInterrupt


@contextlib.contextmanager
def allow_ignoring_interrupts() -> Iterator[Callable[[], None]]:
    """Give what lets this process ignore Ctrl-C from when it is called to the end of the block."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(ignore_interrupts())


@contextlib.contextmanager
def handle_interrupts(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> Iterator[None]:
    """Handle Ctrl-C otherwise; threads other than the main one neither can nor need to."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
