"""Count scored rows. The counts of blocks add up to those of their month, and all figures follow from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tipline.evaluation import histograms, metrics
from tipline.evaluation.baseline import group_rows, sum_group_loss
from tipline.evaluation.histograms import Histogram
from tipline.ingest.columns import get_baseline_columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pyarrow as pa

    from tipline.evaluation.metrics import Counted, Labels, Times
    from tipline.model.pyfunc import Codes, Matrix, Probabilities

BANDS = 1000
DAY_MICROSECONDS = 86_400_000_000
CHUNK_ROWS = 2**15  # intermediate results of one chunk stay in a core's cache
# The day of rows outside of the month or without a time, and of all rows if the model has no time column.
OTHER = "other"


class Sums(NamedTuple):
    """Sums over rows whose target is known."""

    rows: int = 0
    tips: int = 0
    probability: float = 0.0
    loss: float = 0.0

    def __add__(self, other: Sums) -> Sums:  # type: ignore[override]
        rows, tips, probability, loss = other
        return Sums(self.rows + rows, self.tips + tips, self.probability + probability, self.loss + loss)


@dataclass
class Counts:
    """Counts of scored rows, of one block or of a whole month."""

    rows: int = 0  # with and without a known target
    probability: float = 0.0  # sum over all rows
    # Shape (BANDS, 3): rows by band of score, without a tip, with a tip, with an unknown target.
    bands: Counted = field(default_factory=lambda: np.zeros((BANDS, 3), dtype=np.int64))
    # By day of the month ("1" to "31", OTHER), then by the baseline's group.
    days: dict[str, dict[str, Sums]] = field(default_factory=dict)
    # By feature, for models that have a reference.
    histograms: dict[str, Histogram] = field(default_factory=dict)

    @classmethod
    def from_rows(
        cls, trips: pa.RecordBatch, spec: Mapping[str, Any], scores: Probabilities, month: str = ""
    ) -> Counts:
        """Count a batch of prepared trips, by day of `month` if one is given.

        `scores` are those of the model whose model.json is `spec`.
        """
        labels, known = metrics.read_labels(trips, spec["target"])
        groups, codes = group_rows(trips, get_baseline_columns(spec["baseline"]))
        days, start, times = [OTHER], 0, np.zeros(len(trips), np.int64)
        if month and "time" in spec:
            days, start = list_days(month)
            times = metrics.read_microseconds(trips[spec["time"]])
        counts = cls(len(trips), float(scores.sum(dtype=np.float64)))
        if not known.all():
            counts.bands[:, 2] = np.bincount(assign_band(scores[~known]), minlength=BANDS)
            labels, scores, codes, times = labels[known], scores[known], codes[known], times[known]
        counts.bands[:, :2], rows, sums = tally_rows(scores, labels, (codes, len(groups)), (times, start, len(days)))
        for cell in np.flatnonzero(rows.sum(axis=1)).tolist():
            day, group = divmod(cell, len(groups))
            (no, yes), (probability, loss) = rows[cell].tolist(), sums[:, cell].tolist()
            counts.days.setdefault(days[day], {})[groups[group]] = Sums(no + yes, yes, probability, loss)
        features = (spec.get("reference") or {}).get("features", {})
        counts.histograms = {name: histograms.count_column(trips[name], bins) for name, bins in features.items()}
        return counts

    @classmethod
    def merge(cls, parts: Iterable[Counts]) -> Counts:
        """Add up counts. Floats are added in the order of the parts."""
        total = cls()
        for part in parts:
            total.rows += part.rows
            total.probability += part.probability
            total.bands = total.bands + part.bands
            for day, groups in part.days.items():
                sums = total.days.setdefault(day, {})
                for group in groups:
                    sums[group] = sums.get(group, Sums()) + groups[group]
            for name, histogram in part.histograms.items():
                total.histograms[name] = total.histograms[name] + histogram if name in total.histograms else histogram
        return total

    def groups(self) -> dict[str, Sums]:
        """Return the sums by the baseline's group, over all days."""
        days = self.days.values()
        names = dict.fromkeys(name for day in days for name in day)
        return {name: sum((day[name] for day in days if name in day), Sums()) for name in names}

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value; bands without rows are left out."""
        return {
            "rows": self.rows,
            "probability": self.probability,
            "bands": {str(band): self.bands[band].tolist() for band in np.flatnonzero(self.bands.sum(axis=1))},
            "days": self.days,
            "histograms": {name: histogram.to_json() for name, histogram in self.histograms.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Counts:
        """Return the counts that `to_json` wrote."""
        counts = cls(value["rows"], value["probability"])
        for band, rows in value["bands"].items():
            counts.bands[int(band)] = rows
        for day, groups in value["days"].items():
            counts.days[day] = {name: Sums(*sums) for name, sums in groups.items()}
        counts.histograms = {name: Histogram.from_json(rows) for name, rows in value["histograms"].items()}
        return counts

    def figures(self, baseline: Mapping[str, Any]) -> dict[str, float | int | None]:
        """Return how good the scores are beside a fitted baseline; undefined figures are None."""
        groups = self.groups()
        total = sum(groups.values(), Sums())
        loss = metrics.divide_or_none(total.loss, total.rows)
        baseline_loss = metrics.divide_or_none(sum_baseline_loss(baseline, groups), total.rows)
        return {
            "rows": self.rows,
            "labelled_rows": total.rows,
            "mean_probability": metrics.divide_or_none(self.probability, self.rows),
            "tip_rate": metrics.divide_or_none(total.tips, total.rows),
            "log_loss": loss,
            "baseline_log_loss": baseline_loss,
            "skill": metrics.compute_skill(loss, baseline_loss),
            "auc": metrics.compute_auc(self.bands),
        }


def sum_baseline_loss(baseline: Mapping[str, Any], groups: Mapping[str, Sums]) -> float:
    """Return the sum of the baseline's log-losses over the rows of the groups."""
    return sum(sum_group_loss(baseline, name, sums.rows, sums.tips) for name, sums in groups.items())


def list_days(month: str) -> tuple[list[str], int]:
    """Return the names of a month's days, OTHER last, and the microsecond at which the month starts."""
    first, after = (np.datetime64(month, "M") + np.arange(2)).astype("datetime64[D]").astype(int).tolist()
    return [*(str(day + 1) for day in range(after - first)), OTHER], first * DAY_MICROSECONDS


def tally_rows(
    scores: Probabilities, labels: Labels, groups: tuple[Codes, int], times: tuple[Times, int, int]
) -> tuple[Counted, Counted, Matrix]:
    """Return rows by band and label, rows by cell and label, and sums of scores and log-losses by cell.

    A cell is a group on a day: day * number of groups + group. Times outside of the days belong to the last one.
    """
    (codes, n_groups), (microseconds, start, n_days) = groups, times
    cells = n_days * n_groups
    bands, rows, sums = np.zeros(2 * BANDS, np.int64), np.zeros(2 * cells, np.int64), np.zeros((2, cells))
    for first in range(0, len(scores), CHUNK_ROWS):
        chunk = slice(first, first + CHUNK_ROWS)
        score, label = scores[chunk], labels[chunk]
        cell = microseconds[chunk] - start
        cell //= DAY_MICROSECONDS
        days = cell.view(np.uint64)  # negative days become huge
        np.minimum(days, n_days - 1, out=days)
        cell *= n_groups
        cell += codes[chunk]
        bands += np.bincount(assign_band(score) * 2 + label, minlength=2 * BANDS)
        rows += np.bincount(cell * 2 + label, minlength=2 * cells)
        for i, values in enumerate((score, metrics.compute_log_loss(score, label))):
            sums[i] += np.bincount(cell, weights=values, minlength=cells)
    return bands.reshape(BANDS, 2), rows.reshape(cells, 2), sums


def assign_band(probabilities: Probabilities) -> Codes:
    """Return the band of each score, of BANDS equal ones."""
    return np.minimum((probabilities * np.float32(BANDS)).astype(np.int32), BANDS - 1)
