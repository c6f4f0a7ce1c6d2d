"""Progress: a bar on a terminal, a line every few seconds elsewhere."""

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

SECONDS_BETWEEN_LINES = 5.0
LINE = "{desc}: {n_fmt} of {total_fmt}{unit}, {rate_noinv_fmt}, {remaining} left"


@contextlib.contextmanager
def show_progress(total: int | None, unit: str, label: str = "", initial: int = 0) -> Iterator[Callable[[int], object]]:
    """Yield a function that takes the number of units that were done since its last call."""
    if not sys.stderr.isatty():
        yield create_line_logger(total, unit, label, initial)
        return
    with tqdm(initial=initial, total=total, desc=label, unit=unit, unit_scale=True, leave=False) as bar:
        yield bar.update


def create_line_logger(total: int | None, unit: str, label: str, initial: int) -> Callable[[int], None]:
    """Return the function that `show_progress` yields where there is no terminal."""
    count, started = initial, time.perf_counter()
    logged = started

    def add(units: int) -> None:
        nonlocal count, logged
        count, now = count + units, time.perf_counter()
        if now - logged < SECONDS_BETWEEN_LINES:
            return
        logged, form = now, LINE if total else None
        options = {"unit": unit, "unit_scale": True, "bar_format": form, "initial": initial}
        log.info("%s", tqdm.format_meter(count, total, now - started, prefix=label, **options))

    return add
