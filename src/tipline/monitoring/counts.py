"""Count scored rows: scores by band, day and group, features by the bins that the model carries.

The counts of blocks add up to those of their month, and all figures follow from them. Features are counted exactly as
training counted the reference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import nan
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tipline.arrays import CHUNK_ROWS, Codes, Floats, Probabilities, Rows, fill_nulls, hour_of_day
from tipline.evaluation import metrics
from tipline.evaluation.baseline import group_rows, sum_group_loss

BANDS = 1000
DAY_MICROSECONDS = 86_400_000_000
# The day of rows outside of the month or without a time, and of all rows if the model has no time column.
OTHER = "other"
HOURS = 24
# Numbers and hours of a block are counted in about this many evenly spaced rows: shares are exact to 0.2 points.
SAMPLED_ROWS = 2**17
MAX_NEW_NAMES = 20
FEW_CODES = 12
NO_TIME = -(2**63)


@dataclass(eq=False)
class Histogram:
    """Rows of a feature by bin. Histograms of blocks add up."""

    # A category: the reference's values, then all others. An hour: 24. A number: its bins.
    counts: Rows
    missing: int = 0
    new: Counter[str] = field(default_factory=Counter)  # rows of values that the reference does not have

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(self.counts + other.counts, self.missing + other.missing, self.new + other.new)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value with the most frequent new values: free text must not fill the manifests."""
        most = sorted(self.new.items(), key=lambda item: (-item[1], item[0]))[:MAX_NEW_NAMES]
        return {"counts": self.counts.tolist(), "missing": self.missing, "new": dict(sorted(most))}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Histogram:
        return cls(np.array(value["counts"], np.int64), value["missing"], Counter(value["new"]))


class Sums(NamedTuple):
    """Sums over rows whose target is known."""

    rows: int = 0
    positive: int = 0
    probability: float = 0.0
    loss: float = 0.0

    def __add__(self, other: Sums) -> Sums:  # type: ignore[override]
        rows, positive, probability, loss = other
        return Sums(self.rows + rows, self.positive + positive, self.probability + probability, self.loss + loss)


@dataclass
class Counts:
    """Counts of scored rows, of one block or of a whole month."""

    rows: int = 0  # with and without a known target
    probability: float = 0.0  # sum over all rows
    # Shape (BANDS, 3): rows by band of score: negative, positive, without a label.
    bands: metrics.Counted = field(default_factory=lambda: np.zeros((BANDS, 3), dtype=np.int64))
    # By day of the month ("1" to "31", OTHER), then by the baseline's group.
    days: dict[str, dict[str, Sums]] = field(default_factory=dict)
    unlabelled: dict[str, Sums] = field(default_factory=dict)  # rows and probability, by group
    # By feature, for models that have a reference.
    histograms: dict[str, Histogram] = field(default_factory=dict)

    @classmethod
    def from_rows(
        cls,
        trips: pa.RecordBatch,
        spec: Mapping[str, Any],
        scores: Probabilities,
        columns: pa.RecordBatch,
        month: str = "",
    ) -> Counts:
        """Count a batch of prepared trips, by day of `month` if one is given; `columns` are those after derivation."""
        labels, known = metrics.read_labels(trips, spec["target"])
        groups, codes = group_rows(trips, spec["baseline"]["by"])
        days, start, times = [OTHER], 0, np.zeros(len(trips), np.int64)
        if month and "time" in spec:
            first, after = (np.datetime64(month, "M") + np.arange(2)).astype("datetime64[D]").astype(int).tolist()
            days, start = [*(str(day + 1) for day in range(after - first)), OTHER], first * DAY_MICROSECONDS
            times = metrics.read_microseconds(trips[spec["time"]])
        counts = cls(len(trips), float(scores.sum(dtype=np.float64)))
        if not known.all():
            counts.bands[:, 2] = np.bincount(assign_band(scores[~known]), minlength=BANDS)
            lacking, weights = np.bincount(codes[~known]), np.bincount(codes[~known], scores[~known])
            for i in np.flatnonzero(lacking).tolist():
                counts.unlabelled[groups[i]] = Sums(int(lacking[i]), 0, float(weights[i]))
            labels, scores, codes, times = labels[known], scores[known], codes[known], times[known]
        cells = len(days) * len(groups)  # a cell is a group on a day
        bands, rows, sums = np.zeros(2 * BANDS, np.int64), np.zeros(2 * cells, np.int64), np.zeros((2, cells))
        for i in range(0, len(scores), CHUNK_ROWS):
            chunk = slice(i, i + CHUNK_ROWS)
            score, label = scores[chunk], labels[chunk]
            places = (times[chunk] - start) // DAY_MICROSECONDS
            places[(places < 0) | (places >= len(days))] = len(days) - 1
            cell = places * len(groups) + codes[chunk]
            bands += np.bincount(assign_band(score) * 2 + label, minlength=2 * BANDS)
            rows += np.bincount(cell * 2 + label, minlength=2 * cells)
            sums[0] += np.bincount(cell, score, cells)
            sums[1] += np.bincount(cell, metrics.compute_log_loss(score, label), cells)
        counts.bands[:, :2] = bands.reshape(BANDS, 2)
        for i in np.flatnonzero(rows.reshape(cells, 2).sum(axis=1)).tolist():
            day, group = divmod(i, len(groups))
            (no, yes), (probability, loss) = rows[2 * i : 2 * i + 2].tolist(), sums[:, i].tolist()
            counts.days.setdefault(days[day], {})[groups[group]] = Sums(no + yes, yes, probability, loss)
        features = spec["reference"]["features"] if "reference" in spec else {}
        counts.histograms = {name: count_column(columns[name], bins) for name, bins in features.items()}
        return counts

    @classmethod
    def merge(cls, parts: Iterable[Counts]) -> Counts:
        """Add up counts. Floats are added in the order of the parts."""
        total = cls()
        for part in parts:
            total.rows += part.rows
            total.probability += part.probability
            total.bands = total.bands + part.bands
            places = [(total.days.setdefault(day, {}), groups) for day, groups in part.days.items()]
            for sums, groups in [*places, (total.unlabelled, part.unlabelled)]:
                for group in groups:
                    sums[group] = sums.get(group, Sums()) + groups[group]
            for name, histogram in part.histograms.items():
                total.histograms[name] = total.histograms[name] + histogram if name in total.histograms else histogram
        return total

    def groups(self) -> dict[str, Sums]:
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
            "unlabelled": self.unlabelled,
            "histograms": {name: histogram.to_json() for name, histogram in self.histograms.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Counts:
        counts = cls(value["rows"], value["probability"])
        for band, rows in value["bands"].items():
            counts.bands[int(band)] = rows
        for day, groups in value["days"].items():
            counts.days[day] = {name: Sums(*sums) for name, sums in groups.items()}
        counts.unlabelled = {name: Sums(*sums) for name, sums in value.get("unlabelled", {}).items()}
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
            "positive_rate": metrics.divide_or_none(total.positive, total.rows),
            "log_loss": loss,
            "baseline_log_loss": baseline_loss,
            "skill": metrics.compute_skill(loss, baseline_loss),
            "auc": metrics.compute_auc(self.bands),
        }


def sum_baseline_loss(baseline: Mapping[str, Any], groups: Mapping[str, Sums]) -> float:
    """Return the sum of the baseline's log-losses over the rows of the groups."""
    return sum(sum_group_loss(baseline, name, sums.rows, sums.positive) for name, sums in groups.items())


def assign_band(probabilities: Probabilities) -> Codes:
    """Return the band of each score, of BANDS equal ones."""
    return np.minimum((probabilities * np.float32(BANDS)).astype(np.int32), BANDS - 1)


def group_bands(rows: Rows, groups: int) -> Rows:
    """Return the group of each band, of some with about the same sum of p (1 - p), so that each has positive rows."""
    middles = (np.arange(BANDS) + 0.5) / BANDS
    variance = rows * middles * (1 - middles)
    before: Floats = (np.cumsum(variance) - variance / 2) / max(variance.sum(), metrics.NEXT_TO_NOTHING)
    return (before * groups).astype(np.int64)


def count_column(column: pa.Array, bins: Mapping[str, Any]) -> Histogram:
    """Count one feature's rows in the bins that the reference has for it, as `assign_bins` assigns them."""
    if bins["kind"] == "category":
        names = column.dictionary.to_pylist()
        codes, size = fill_nulls(column.indices, len(names)), len(names) + 1
        if size <= FEW_CODES:  # one comparison per code takes a third of the time
            rows = np.array([np.count_nonzero(codes == code) for code in range(size)])
        else:
            rows = np.bincount(codes, minlength=size)
        *found, missing = rows.tolist()
        by_name = {name: count for name, count in zip(names, found, strict=True) if count}
        new = Counter({name: count for name, count in by_name.items() if name not in bins["values"]})
        known = [by_name.get(value, 0) for value in bins["values"]]
        return Histogram(np.array([*known, sum(new.values())], np.int64), missing, new)
    step = max(1, len(column) // SAMPLED_ROWS)
    if bins["kind"] == "hour":
        rows = np.bincount(read_hours(column, step), minlength=HOURS + 1)[:-1]
    else:
        values = read_numbers(column)[::step].copy()
        # One comparison per edge takes an eighth of the time of a search per row.
        below = [np.count_nonzero(values < edge) for edge in bins["edges"]]
        rows = np.diff([0, *below, np.count_nonzero(~np.isnan(values))])
    return Histogram(rows * step, int(column.null_count))


def assign_bins(column: pa.Array, bins: Mapping[str, Any]) -> tuple[Codes, int]:
    """Return the bin of each row and the number of bins, which is the code of missing values."""
    if bins["kind"] == "hour":
        return read_hours(column), HOURS
    if bins["kind"] == "number":
        # A NaN sorts behind all numbers.
        edges = [*bins["edges"], nan]
        return np.searchsorted(edges, read_numbers(column), side="right").astype(np.int32), len(edges)
    size, place = len(bins["values"]) + 1, {value: i for i, value in enumerate(bins["values"])}
    names = column.dictionary.to_pylist()
    table: Codes = np.array([*(place.get(name, size - 1) for name in names), size], np.int32)
    return table.take(fill_nulls(column.indices, len(names))), size


def read_hours(column: pa.Array, step: int = 1) -> Codes:
    """Return the hour of every step-th time; a missing one is HOURS."""
    times = metrics.read_microseconds(column, NO_TIME)[::step]
    return np.where(times == NO_TIME, np.int32(HOURS), hour_of_day(times))


def read_numbers(column: pa.Array) -> Floats:
    return fill_nulls(column.cast(pa.float64()), nan)
