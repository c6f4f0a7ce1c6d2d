"""Read labels and times of prepared rows, and measure how good probabilities are: log-loss, skill, AUC."""

import numpy as np
import pyarrow as pa

from tipline.arrays import Codes, Floats, Labels, Matrix, Probabilities, fill_nulls, unpack_booleans
from tipline.ingest.target import parse_target

Counted = np.ndarray[tuple[int, int], np.dtype[np.int64]]
Times = np.ndarray[tuple[int], np.dtype[np.int64]]

# The truth never counts as less likely than one float32 step from 0, so that the loss is finite.
EDGE = np.float32(2.0**-24)
# A baseline with a smaller log-loss leaves nothing to gain, and ratios to it are noise.
NEXT_TO_NOTHING = 1e-6
LARGE_SHARE = 0.1  # of the loss, of rows with values that training never had; those with less are not named


def read_labels(trips: pa.Table | pa.RecordBatch, target: str) -> tuple[Labels, Labels]:
    """Return what the target says of each row, and whether it is known; False for a row without a label."""
    answers = parse_target(target).evaluate(trips)
    if not answers.null_count:
        return unpack_booleans(answers), np.ones(len(trips), dtype=bool)
    known = unpack_booleans(answers.is_valid())
    return unpack_booleans(answers) & known, known


def read_microseconds(column: pa.Array, missing: int = 0) -> Times:
    return fill_nulls(column.cast(pa.timestamp("us"), safe=False).cast(pa.int64()), missing)


def read_days(column: pa.Array) -> Codes:
    """Return each time in days since 1970; a missing time is 1970-01-01."""
    return fill_nulls(column.cast(pa.date32()).cast(pa.int32()), 0)


def rank_values(values: Codes) -> Codes:
    """Return each value's rank among the distinct values, from 0."""
    codes: Codes = np.unique(values, return_inverse=True)[1].astype(np.int32)
    return codes


def compute_log_loss(probabilities: Probabilities | Floats, labels: Labels) -> Probabilities | Floats:
    """Return the log-loss of each row, in nats and in the precision of the probabilities."""
    # The probability of what happened; `np.where` takes ten times as long.
    likelihood = np.abs(np.subtract(probabilities, ~labels, dtype=probabilities.dtype))
    loss: Probabilities | Floats = -np.log(np.maximum(likelihood, EDGE))
    return loss


def divide_or_none(total: float, rows: int) -> float | None:
    return total / rows if rows else None


def compute_skill(loss: float | None, baseline: float | None) -> float | None:
    """Return 1 - loss / the baseline's loss: 0 is no better, 1 is perfect; None if there is nothing to gain."""
    if loss is None or baseline is None or baseline < NEXT_TO_NOTHING:
        return None
    return 1 - loss / baseline


def compute_auc(bands: Counted | Matrix) -> float | None:
    """Return the area under the ROC curve from rows by band of score (ties) and label; None for one class."""
    negative, positive = bands[:, 0].astype(float), bands[:, 1].astype(float)
    if not negative.sum() or not positive.sum():
        return None
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / (negative.sum() * positive.sum()))
