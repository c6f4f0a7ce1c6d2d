"""Progress that a person can read: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

EVERY_SECONDS = 5.0
LINE = "{desc}: {n_fmt} of {total_fmt}{unit}, {rate_noinv_fmt}, {remaining} left"  # 12.6M of 28.0M rows, …


@contextlib.contextmanager
def show_progress(total: int | None, unit: str, label: str = "", done: int = 0) -> Iterator[Callable[[int], object]]:
    """Give a function that is told how many more are done."""
    if not sys.stderr.isatty():
        yield lines(total, unit, label, done)
        return
    with tqdm(initial=done, total=total, desc=label, unit=unit, unit_scale=True, leave=False) as bar:
        yield bar.update


def lines(total: int | None, unit: str, label: str, done: int) -> Callable[[int], None]:
    """`counting` where no terminal is."""
    count, began = done, time.perf_counter()
    shown = began

    def add(more: int) -> None:
        nonlocal count, shown
        count, now = count + more, time.perf_counter()
        if now - shown < EVERY_SECONDS:
            return
        shown, form = now, LINE if total else None
        options = {"unit": unit, "unit_scale": True, "bar_format": form, "initial": done}
        log.info("%s", tqdm.format_meter(count, total, now - began, prefix=label, **options))

    return add
