"""Progress that a person can read: one line that changes on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time

log = logging.getLogger(__name__)

EVERY_SECONDS = 5.0


class Progress:
    """Rows done of rows in all, with speed and time left."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self._started = self._shown = time.perf_counter()
        self._line = sys.stderr.isatty()

    def add(self, rows: int) -> None:
        """Count rows that are done now."""
        self.done += rows
        now = time.perf_counter()
        if self._line:
            sys.stderr.write(f"\r{self}\x1b[K")
            sys.stderr.flush()
        elif now - self._shown >= EVERY_SECONDS:
            self._shown = now
            log.info("%s", self)

    def close(self) -> None:
        """Leave the terminal's line free."""
        if self._line:
            sys.stderr.write("\r\x1b[K")

    def __str__(self) -> str:
        """Such as `12,582,912 of 28,000,000 rows, 9.1 million rows/s, 2 s left`."""
        seconds = max(time.perf_counter() - self._started, 1e-9)
        speed = self.done / seconds
        left = f"{(self.total - self.done) / speed:.0f} s left" if self.done else "starting"
        return f"{self.done:,} of {self.total:,} rows, {speed / 1e6:.1f} million rows/s, {left}"
