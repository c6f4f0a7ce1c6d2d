"""Edit samples that a test trains or evaluates on."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def change_targets(path: Path, change: Callable[[list[float | None]], Sequence[float | None]]) -> None:
    """Replace the tips of a sample by what `change` returns for them."""
    sample = pq.read_table(path)
    tips = pa.array(change(sample["tip_amount"].to_pylist()), pa.float64())
    pq.write_table(sample.set_column(sample.schema.get_field_index("tip_amount"), "tip_amount", tips), path)
