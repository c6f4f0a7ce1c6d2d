"""How two models' scores of the same rows differ: counts that merge in any order to the same figures.

Sums are whole numbers of 2**-40, ties among the movers are settled by month and row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tipline.model.pyfunc import Floats, Probabilities

    Edges = tuple[Probabilities, Probabilities]
    Whole = np.ndarray[tuple[int], np.dtype[np.int64]]

BANDS = 1024
UNIT = 2**40


@dataclass
class Difference:
    """How two models' scores of some rows differ. Those of parts add up to that of all rows, whatever the order.

    Memory: BANDS squared cells, 8 MiB, and the movers. Only cells with rows in them travel.
    """

    rows: int = 0
    sums: tuple[int, int, int] = (0, 0, 0)  # of the scores of A, of B, of the absolute differences, in 2**-40
    crossed: tuple[int, int] = (0, 0)  # rows that B lifts above the threshold, and rows that it takes below
    # Rows by band of both scores: band of A * BANDS + band of B.
    joint: Whole = field(default_factory=lambda: np.zeros(BANDS**2, np.int64))
    movers: list[dict[str, Any]] = field(default_factory=list)  # the rows of the largest differences, the largest first

    @classmethod
    def of(cls, a: Probabilities, b: Probabilities, edges: Edges, threshold: float) -> Difference:
        """Count the rows of a block; the movers, which need more than the scores, are not among it.

        `edges` says where the bands of each model's scores begin, but for the first. A row crosses the threshold where
        one score is above it and the other is not.
        """
        one, two = a.astype(np.float64), b.astype(np.float64)
        units = [np.rint(scores * UNIT).astype(np.int64) for scores in (one, two)]
        sums = (int(units[0].sum()), int(units[1].sum()), int(np.abs(units[1] - units[0]).sum()))
        below, above = one <= threshold, two > threshold
        crossed = (int((below & above).sum()), int((~below & ~above).sum()))
        bands = (np.searchsorted(of_model, scores, "right") for of_model, scores in zip(edges, (a, b), strict=True))
        joint = np.bincount(next(bands) * BANDS + next(bands), minlength=BANDS**2)
        return cls(len(a), sums, crossed, joint)

    def plus(self, other: Difference, movers: int) -> Difference:
        """Both together, with so many movers."""
        return Difference(
            self.rows + other.rows,
            (self.sums[0] + other.sums[0], self.sums[1] + other.sums[1], self.sums[2] + other.sums[2]),
            (self.crossed[0] + other.crossed[0], self.crossed[1] + other.crossed[1]),
            self.joint + other.joint,
            sorted(self.movers + other.movers, key=sort_key)[:movers],
        )

    def rank_correlation(self) -> float | None:
        """Spearman's, where scores of one band are ties; None where all scores of a model are in one.

        The bands hold about equally many rows each, by a sample, wherever the scores lie: it is right to 1e-4. Bands of
        equal width would not be: most trips are paid in cash, and a model gives all of them nearly the same score.
        """
        joint = self.joint.reshape(BANDS, BANDS)
        of_a, of_b = joint.sum(axis=1), joint.sum(axis=0)
        x, y = middle_ranks(of_a), middle_ranks(of_b)
        spread = math.sqrt(float((of_a * x * x).sum()) * float((of_b * y * y).sum()))
        return float(((joint * y).sum(axis=1) * x).sum()) / spread if spread else None

    def __getstate__(self) -> dict[str, Any]:
        """Travel with the cells that are not empty."""
        cells = np.flatnonzero(self.joint)
        return {**self.__dict__, "joint": (cells.astype(np.int32), self.joint[cells])}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive with all."""
        cells, counts = state["joint"]
        self.__dict__.update(state, joint=np.zeros(BANDS**2, np.int64))
        self.joint[cells] = counts

    def figures(self) -> dict[str, Any]:
        """What the report says of these rows; None where there are none to say it of."""
        a, b, moved = (total / UNIT / self.rows if self.rows else None for total in self.sums)
        return {
            "rows": self.rows,
            "rank_correlation": self.rank_correlation(),
            "mean_a": a,
            "mean_b": b,
            "mean_difference": (self.sums[1] - self.sums[0]) / UNIT / self.rows if self.rows else None,
            "mean_absolute_difference": moved,
            "largest_difference": abs(self.movers[0]["difference"]) if self.movers else None,
            "crossed_up": self.crossed[0],
            "crossed_down": self.crossed[1],
            "crossed_share": sum(self.crossed) / self.rows if self.rows else None,
        }


def compute_edges(scores: Probabilities) -> Probabilities:
    """Where the bands of a model's scores begin, but for the first: each holds equally many of these, but for ties."""
    between = np.arange(1, BANDS) / BANDS
    edges: Probabilities = np.unique(np.quantile(scores, between, method="lower")) if len(scores) else scores
    return edges


def middle_ranks(rows: Whole) -> Floats:
    """The middle rank of each band's rows, from the mean rank of all."""
    ranks: Floats = np.cumsum(rows) - rows / 2 - rows.sum() / 2
    return ranks


def sort_key(mover: Mapping[str, Any]) -> tuple[float, str, int]:
    """Sorts the largest difference first, ties by month and row."""
    return -abs(mover["difference"]), mover["month"], mover["row"]


def find_largest(gaps: Floats, rows: Whole, count: int) -> Whole:
    """Where the largest gaps are, the largest first, ties by row."""
    floor = np.partition(gaps, -count)[-count] if len(gaps) > count else 0.0
    found = np.flatnonzero(gaps >= floor)
    chosen: Whole = found[np.lexsort((rows[found], -gaps[found]))[:count]]
    return chosen
