"""What scoring counts in passing: counts of parts add up to those of a month, and the figures follow from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tipline import baseline as rule
from tipline.metrics import auc, labels, losses, ratio, skill

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pyarrow as pa

    from tipline.metrics import Counted, Labels
    from tipline.pyfunc import Codes, Floats, Probabilities

BANDS = 1000
CHUNK_ROWS = 2**15


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
        By the baseline's groups: rows with a known target, tips among them, sum of their log-losses.
    """

    rows: int = 0
    probability: float = 0.0
    bands: np.ndarray[tuple[int, int], np.dtype[np.int64]] = field(
        default_factory=lambda: np.zeros((BANDS, 2), dtype=np.int64)
    )
    groups: dict[str, tuple[int, int, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, trips: pa.RecordBatch, spec: Mapping[str, Any], probabilities: Probabilities) -> Counts:
        """Count the rows of one batch of prepared trips, scored with the model whose model.json is `spec`."""
        tipped, known = labels(trips, spec["target"])
        names, codes = rule.groups(trips, rule.columns(spec["baseline"]))
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
        of_baseline = ratio(
            sum(rule.loss(baseline, name, rows, tips) for name, (rows, tips, _) in self.groups.items()), labelled
        )
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
