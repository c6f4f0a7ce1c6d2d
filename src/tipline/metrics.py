"""How good probabilities are: counts that merge over parts and months, and the figures that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tipline.pyfunc import filled

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tipline.pyfunc import Codes, Floats, Probabilities

    Counted = np.ndarray[tuple[int, int], np.dtype[np.int64]]
    Labels = np.ndarray[tuple[int], np.dtype[np.bool_]]

BANDS = 1000
CHUNK_ROWS = 2**15
# The loss of a probability of exactly 0 or 1 that proves wrong is that of one float32 step away from it.
EDGE = np.float32(2.0**-24)
# Under this log-loss a baseline leaves nothing to gain, and the ratio to it is noise.
NEXT_TO_NOTHING = 1e-6
MISSING = "(missing)"


def labels(trips: pa.Table | pa.RecordBatch, target: str) -> tuple[Labels, Labels]:
    """Whether each row's target is above zero, and whether it is known at all."""
    amount = trips[target]
    known = amount.is_valid().to_numpy(zero_copy_only=False) if amount.null_count else np.ones(len(trips), dtype=bool)
    return filled(amount, 0) > 0, known


def losses(probabilities: Probabilities | Floats, tipped: Labels) -> Probabilities | Floats:
    """Log-loss of each row, in nats."""
    # p where it tipped, 1 - p where not; `np.where` takes ten times as long.
    of_truth = np.abs(np.subtract(probabilities, ~tipped, dtype=probabilities.dtype))
    loss: Probabilities | Floats = -np.log(np.maximum(of_truth, EDGE))
    return loss


@dataclass
class Counts:
    """What scoring counts in passing. Counts of parts add up to those of a month.

    Attributes
    ----------
    rows
        Rows scored, with a known target or without.
    probability
        Sum of their probabilities.
    bands
        Shape (BANDS, 2): rows with a known target by band of score, not tipped and tipped.
    groups
        By value of the baseline's column: rows with a known target, tips among them, sum of their log-losses.
    """

    rows: int = 0
    probability: float = 0.0
    bands: np.ndarray[tuple[int, int], np.dtype[np.int64]] = field(
        default_factory=lambda: np.zeros((BANDS, 2), dtype=np.int64)
    )
    groups: dict[str, tuple[int, int, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, trips: pa.RecordBatch, target: str, by: str, probabilities: Probabilities) -> Counts:
        """Count the rows of one batch of prepared trips."""
        tipped, known = labels(trips, target)
        names = [*trips[by].dictionary.to_pylist(), MISSING]
        codes = filled(trips[by].indices, len(names) - 1)
        scores = probabilities
        if not known.all():
            tipped, codes, scores = tipped[known], codes[known], probabilities[known]
        bands, table, sums = tally(scores, tipped, codes, len(names))
        groups = {
            name: (int(row.sum()), int(row[1]), float(total))
            for name, row, total in zip(names, table, sums, strict=True)
            if row.sum()
        }
        return cls(len(trips), float(probabilities.sum(dtype=np.float64)), bands, groups)

    @classmethod
    def sum(cls, parts: Iterable[Counts]) -> Counts:
        """The counts of all parts together; the order of the parts is the order of the additions."""
        total = cls()
        for part in parts:
            total.rows += part.rows
            total.probability += part.probability
            total.bands = total.bands + part.bands
            for name, group in part.groups.items():
                rows, tips, loss = total.groups.get(name, (0, 0, 0.0))
                total.groups[name] = (rows + group[0], tips + group[1], loss + group[2])
        return total

    def to_json(self) -> dict[str, Any]:
        """As json: of the bands, those with rows."""
        filled = np.flatnonzero(self.bands.sum(axis=1))
        bands = {str(band): self.bands[band].tolist() for band in filled}
        return {"rows": self.rows, "probability": self.probability, "bands": bands, "groups": self.groups}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Counts:
        """The counts that `to_json` wrote."""
        counts = cls(value["rows"], value["probability"])
        for band, rows in value["bands"].items():
            counts.bands[int(band)] = rows
        counts.groups = {name: tuple(group) for name, group in value["groups"].items()}
        return counts

    def figures(self, baseline: Mapping[str, Any]) -> dict[str, float | int | None]:
        """The figures of monitoring; those that the rows do not give are None.

        Parameters
        ----------
        baseline
            As `fit_baseline` gives it.
        """
        labelled = sum(rows for rows, _, _ in self.groups.values())
        tips = sum(tips for _, tips, _ in self.groups.values())
        loss = ratio(sum(loss for _, _, loss in self.groups.values()), labelled)
        of_baseline = ratio(sum(baseline_loss(baseline, name, g) for name, g in self.groups.items()), labelled)
        return {
            "rows": self.rows,
            "labelled_rows": labelled,
            "mean_probability": ratio(self.probability, self.rows),
            "tip_rate": ratio(tips, labelled),
            "log_loss": loss,
            "baseline_log_loss": of_baseline,
            "skill": skill(loss, of_baseline),
            "auc": auc(self.bands),
        }


def tally(probabilities: Probabilities, tipped: Labels, codes: Codes, groups: int) -> tuple[Counted, Counted, Floats]:
    """Rows by band of score and tipped, rows by group and tipped, sum of log-losses by group.

    Parameters
    ----------
    codes
        Each row's group, below `groups`.
    """
    bands, table, sums = np.zeros(2 * BANDS, np.int64), np.zeros(2 * groups, np.int64), np.zeros(groups)
    # A few rows at a time: what is in between stays in a core's cache.
    for start in range(0, len(probabilities), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        scores, yes, group = probabilities[rows], tipped[rows], codes[rows]
        bands += np.bincount(band(scores) * 2 + yes, minlength=2 * BANDS)
        table += np.bincount(group * 2 + yes, minlength=2 * groups)
        sums += np.bincount(group, weights=losses(scores, yes), minlength=groups)
    return bands.reshape(BANDS, 2), table.reshape(groups, 2), sums


def band(probabilities: Probabilities) -> Codes:
    """Which of the BANDS equal bands of score each row is in."""
    return np.minimum((probabilities * np.float32(BANDS)).astype(np.int32), BANDS - 1)


def ratio(total: float, rows: int) -> float | None:
    """A mean, None of no rows."""
    return total / rows if rows else None


def skill(loss: float | None, baseline: float | None) -> float | None:
    """1 - loss / the baseline's loss: 0 is no better, 1 is perfect. None where the baseline leaves nothing to gain."""
    if loss is None or baseline is None or baseline < NEXT_TO_NOTHING:
        return None
    return 1 - loss / baseline


def auc(bands: np.ndarray[tuple[int, int], np.dtype[np.int64]]) -> float | None:
    """Area under the ROC curve, from rows by band of score; within a band the order is taken as a tie.

    None where all rows tipped, or none. On the trips, a thousand bands are within 0.001 of the exact area.
    """
    no, yes = bands[:, 0].astype(float), bands[:, 1].astype(float)
    if not no.sum() or not yes.sum():
        return None
    below = np.cumsum(no) - no
    return float((yes * (below + no / 2)).sum() / (no.sum() * yes.sum()))


def fit_baseline(trips: pa.RecordBatch, target: str, by: str, smoothing: float) -> dict[str, Any]:
    """The tip rate by category, mixed with `smoothing` rows of the overall rate.

    Parameters
    ----------
    trips
        Prepared trips whose target is known.
    by
        The category's column.

    Returns
    -------
    dict
        `by`, `overall`, and `rates`; a category that is not among them has the overall rate.
    """
    tipped, _ = labels(trips, target)
    overall = float(tipped.mean())
    names = trips[by].cast(pa.string()).fill_null(MISSING)
    rates = {}
    for name in sorted(names.unique().to_pylist()):
        of_name = tipped[pc.equal(names, name).to_numpy(zero_copy_only=False)]
        rates[name] = (float(of_name.sum()) + smoothing * overall) / (len(of_name) + smoothing)
    return {"by": by, "overall": overall, "rates": rates}


def baseline_loss(baseline: Mapping[str, Any], name: str, group: tuple[int, int, float]) -> float:
    """Sum of the baseline's log-losses over the rows of a category."""
    rows, tips, _ = group
    rate = baseline["rates"].get(name, baseline["overall"])
    yes, no = losses(np.array([rate, rate]), np.array([True, False]))
    return float(tips * yes + (rows - tips) * no)


def baseline_probabilities(trips: pa.RecordBatch, baseline: Mapping[str, Any]) -> Floats:
    """The baseline's probability of each row."""
    column = trips[baseline["by"]]
    rates = [baseline["rates"].get(name or MISSING, baseline["overall"]) for name in column.dictionary.to_pylist()]
    missing = baseline["rates"].get(MISSING, baseline["overall"])
    values: Floats = np.array([*rates, missing]).take(filled(column.indices, len(rates)))
    return values
