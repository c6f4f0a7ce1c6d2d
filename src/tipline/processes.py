"""Processes of a local cluster: how many, forked from what, and how they and their driver handle Ctrl-C.

Workers are forked from a forkserver that is started before all else. It imports on one core what workers need while the
driver reads its settings on another. Spawned workers would import for a second each, again after each restart.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

ADDRESS = "DASK_SCHEDULER_ADDRESS"
# macOS has fork, but it is not safe there without exec: workers are spawned.
CAN_FORK = sys.platform == "linux"
# Read when a process starts. One BLAS thread per worker. dask makes glibc return memory at once (64 KiB), so every
# temporary array is mapped and cleared again, which doubles the time of the arithmetic; blocks are bounded anyway.
ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1") | dict.fromkeys(
    ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(1 << 28)
)


def count_cpus() -> int:
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def start_forkserver(*modules: str) -> bool:
    """Start the forkserver, which imports dask and modules, unless it runs already; return whether there is one.

    There is none if the environment names a scheduler, or if its socket has no place: the temporary folder is full, or
    its path is too long for the name of a socket.
    """
    if not CAN_FORK or os.environ.get(ADDRESS):
        return False
    forkserver.set_forkserver_preload(["distributed", *modules])
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        with hold_interrupts(ignore=True):
            forkserver.ensure_running()
    except OSError:
        return False
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({name: value} if value is not None else {})
    return True


def set_kernel_cache(folder: Path) -> None:
    """Let numba keep compiled kernels in a folder if it cannot keep them beside their source; workers inherit this."""
    if not os.access(Path(__file__).parent / "model", os.W_OK):
        os.environ.setdefault("NUMBA_CACHE_DIR", str(folder))


@contextlib.contextmanager
def hold_interrupts(*, ignore: bool = False) -> Iterator[None]:
    """Postpone Ctrl-C to the end of the block, or ignore it during the block.

    A terminal sends Ctrl-C to all processes. The driver ends the workers, which would only print a traceback each;
    processes that are started while it is ignored ignore it, too. In other threads than the main one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignore else lambda number, _: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if received:
        raise KeyboardInterrupt
