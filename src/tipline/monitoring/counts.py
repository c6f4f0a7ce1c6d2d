"""What scoring counts in passing: counts of parts add up to those of a month, and the figures follow from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tipline.evaluation import baseline as rule
from tipline.evaluation import histograms
from tipline.evaluation.histograms import Histogram
from tipline.evaluation.metrics import compute_auc, compute_log_loss, compute_skill, divide_or_none, read_labels
from tipline.evaluation.times import DAY_MICROSECONDS, read_microseconds
from tipline.ingest.columns import get_baseline_columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pyarrow as pa

    from tipline.evaluation.metrics import Counted, Labels
    from tipline.evaluation.times import Times
    from tipline.model.pyfunc import Codes, Matrix, Probabilities

BANDS = 1000
CHUNK_ROWS = 2**15
# Rows picked up outside of the month, or at no known time; all rows where the model does not name the time.
OTHER = "other"


class Sums(NamedTuple):
    """Of rows with a known target: how many, tips among them, sum of the probabilities, sum of the log-losses."""

    rows: int = 0
    tips: int = 0
    probability: float = 0.0
    loss: float = 0.0

    def plus(self, other: Sums) -> Sums:
        """The sums over both."""
        rows, tips, probability, loss = other
        return Sums(self.rows + rows, self.tips + tips, self.probability + probability, self.loss + loss)


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
        Shape (BANDS, 3): rows by band of score, not tipped, tipped, target unknown.
    days
        By day of the month (`1` to `31`, and OTHER) and the baseline's group.
    histograms
        By feature, of those that the model's reference has.
    """

    rows: int = 0
    probability: float = 0.0
    bands: Counted = field(default_factory=lambda: np.zeros((BANDS, 3), dtype=np.int64))
    days: dict[str, dict[str, Sums]] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)

    @classmethod
    def from_rows(
        cls, trips: pa.RecordBatch, spec: Mapping[str, Any], scores: Probabilities, month: str = ""
    ) -> Counts:
        """Count the rows of one batch of prepared trips.

        Parameters
        ----------
        spec
            model.json of the model that gave the scores.
        month
            The month whose days are told apart; by default none are.
        """
        labels, known = read_labels(trips, spec["target"])
        cells, probability = Cells.of(trips, spec, month), float(scores.sum(dtype=np.float64))
        bands = np.zeros((BANDS, 3), np.int64)
        if not known.all():
            bands[:, 2] = np.bincount(assign_band(scores[~known]), minlength=BANDS)
            labels, scores, cells = labels[known], scores[known], cells.where(known)
        bands[:, :2], table, sums = tally_rows(scores, labels, cells)
        features = (spec.get("reference") or {}).get("features", {})
        return cls(
            len(trips),
            probability,
            bands,
            cells.named(table, sums),
            {name: histograms.count_column(trips[name], bins) for name, bins in features.items()},
        )

    @classmethod
    def merge(cls, parts: Iterable[Counts]) -> Counts:
        """The counts of all parts together; the order of the parts is the order of the additions."""
        total = cls()
        for part in parts:
            total.rows += part.rows
            total.probability += part.probability
            total.bands = total.bands + part.bands
            for day, groups in part.days.items():
                total.days[day] = merge_groups([total.days.get(day, {}), groups])
            for name, histogram in part.histograms.items():
                total.histograms[name] = total.histograms[name] + histogram if name in total.histograms else histogram
        return total

    def groups(self) -> dict[str, Sums]:
        """The sums by the baseline's group, over all days."""
        return merge_groups(self.days.values())

    def to_json(self) -> dict[str, Any]:
        """As json: of the bands, those with rows."""
        return {
            "rows": self.rows,
            "probability": self.probability,
            "bands": {str(band): self.bands[band].tolist() for band in np.flatnonzero(self.bands.sum(axis=1))},
            "days": self.days,
            "histograms": {name: histogram.to_json() for name, histogram in self.histograms.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Counts:
        """The counts that `to_json` wrote."""
        counts = cls(value["rows"], value["probability"])
        for band, rows in value["bands"].items():
            counts.bands[int(band)] = rows
        for day, groups in value["days"].items():
            counts.days[day] = {name: Sums(*sums) for name, sums in groups.items()}
        counts.histograms = {name: Histogram.from_json(found) for name, found in value["histograms"].items()}
        return counts

    def figures(self, baseline: Mapping[str, Any]) -> dict[str, float | int | None]:
        """How good the probabilities were; what the rows do not tell is None.

        Parameters
        ----------
        baseline
            As `baseline.fit` gives it.
        """
        groups = self.groups()
        total = sum_groups(groups)
        loss = divide_or_none(total.loss, total.rows)
        of_baseline = divide_or_none(sum_baseline_loss(baseline, groups), total.rows)
        return {
            "rows": self.rows,
            "labelled_rows": total.rows,
            "mean_probability": divide_or_none(self.probability, self.rows),
            "tip_rate": divide_or_none(total.tips, total.rows),
            "log_loss": loss,
            "baseline_log_loss": of_baseline,
            "skill": compute_skill(loss, of_baseline),
            "auc": compute_auc(self.bands),
        }


def merge_groups(parts: Iterable[Mapping[str, Sums]]) -> dict[str, Sums]:
    """Sums by group, added up."""
    total: dict[str, Sums] = {}
    for part in parts:
        for name, sums in part.items():
            total[name] = total.get(name, Sums()).plus(sums)
    return total


def sum_groups(groups: Mapping[str, Sums]) -> Sums:
    """The sums over all groups."""
    total = Sums()
    for sums in groups.values():
        total = total.plus(sums)
    return total


def sum_baseline_loss(baseline: Mapping[str, Any], groups: Mapping[str, Sums]) -> float:
    """Sum of the baseline's log-losses over the rows of the groups."""
    return sum(rule.sum_group_loss(baseline, name, sums.rows, sums.tips) for name, sums in groups.items())


@dataclass(frozen=True)
class Cells:
    """Day and group of each row, as one code: the day times the number of groups, plus the group."""

    days: list[str]
    groups: list[str]
    codes: Codes
    times: Times | None
    start: int

    @classmethod
    def of(cls, trips: pa.RecordBatch, spec: Mapping[str, Any], month: str) -> Cells:
        """The cells of the rows of one month; without a month or a time, all are of one day."""
        groups, codes = rule.group_rows(trips, get_baseline_columns(spec["baseline"]))
        if not month or "time" not in spec:
            return cls([OTHER], groups, codes, None, 0)
        first, after = (np.datetime64(month, "M") + np.arange(2)).astype("datetime64[D]").astype(int).tolist()
        days = [*(str(day + 1) for day in range(after - first)), OTHER]
        return cls(days, groups, codes, read_microseconds(trips[spec["time"]]), first * DAY_MICROSECONDS)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.days) * len(self.groups)

    def where(self, chosen: Labels) -> Cells:
        """The cells of some of the rows."""
        times = None if self.times is None else self.times[chosen]
        return Cells(self.days, self.groups, self.codes[chosen], times, self.start)

    def at(self, rows: slice) -> Codes | Times:
        """The codes of some rows."""
        if self.times is None:
            return self.codes[rows]
        days = self.times[rows] - self.start
        days //= DAY_MICROSECONDS
        # As unsigned numbers, days before the month are beyond its end, too.
        unsigned = days.view(np.uint64)
        np.minimum(unsigned, len(self.days) - 1, out=unsigned)
        days *= len(self.groups)
        days += self.codes[rows]
        return days

    def named(self, table: Counted, sums: Matrix) -> dict[str, dict[str, Sums]]:
        """The sums by the names of day and group; those without rows are left out."""
        found: dict[str, dict[str, Sums]] = {}
        for cell in np.flatnonzero(table.sum(axis=1)).tolist():
            day, group = divmod(cell, len(self.groups))
            (no, yes), (probability, loss) = table[cell].tolist(), sums[:, cell].tolist()
            found.setdefault(self.days[day], {})[self.groups[group]] = Sums(no + yes, yes, probability, loss)
        return found


def tally_rows(probabilities: Probabilities, labels: Labels, cells: Cells) -> tuple[Counted, Counted, Matrix]:
    """Rows by band of score and tipped; rows by cell and tipped; sums of probabilities and log-losses by cell."""
    bands, table = np.zeros(2 * BANDS, np.int64), np.zeros(2 * cells.count, np.int64)
    sums = np.zeros((2, cells.count))
    # A few rows at a time: what is in between stays in a core's cache.
    for start in range(0, len(probabilities), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        scores, yes, cell = probabilities[rows], labels[rows], cells.at(rows)
        bands += np.bincount(assign_band(scores) * 2 + yes, minlength=2 * BANDS)
        table += np.bincount(cell * 2 + yes, minlength=2 * cells.count)
        for place, values in enumerate((scores, compute_log_loss(scores, yes))):
            sums[place] += np.bincount(cell, weights=values, minlength=cells.count)
    return bands.reshape(BANDS, 2), table.reshape(cells.count, 2), sums


def assign_band(probabilities: Probabilities) -> Codes:
    """Which of the BANDS equal bands of score each row is in."""
    return np.minimum((probabilities * np.float32(BANDS)).astype(np.int32), BANDS - 1)
