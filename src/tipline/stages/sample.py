"""sample@month: the rows of a month that its role may use."""

import logging

import pyarrow.parquet as pq

from tipline import files
from tipline.config import Settings
from tipline.errors import UsageError
from tipline.ingest.columns import PREPARED_FILE
from tipline.paths import Paths, month_name
from tipline.storage import open_place
from tipline.training import sampling

log = logging.getLogger(__name__)


def run(settings: Settings, paths: Paths, month: str) -> None:
    role, rows = settings.sample.months.get(month), settings.sample.rows
    if role is None:
        todo = "Give it one of train, validation, test."
        raise UsageError(f"{month} has no role.", "params.yaml, sample.months", todo)
    sampling.remove_unlisted_samples(settings, paths)
    trips = open_place(settings.storage.prepared, paths, paths.trips)
    with trips.open_parquet(f"{month_name(month)}/{PREPARED_FILE}") as file:
        table = sampling.sample_month(file, month, rows, settings.sample.seed)
    with files.replace_file(paths.sample(role, month)) as path:
        pq.write_table(table, path)
    shortfall = f", all that the month has; sample.rows asks for {rows:,}" if len(table) < rows else ""
    log.info("%s: %s rows for %s%s", month, f"{len(table):,}", role, shortfall)
