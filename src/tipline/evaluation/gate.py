"""The gate: may a challenger take the champion's place? Decided from both models' log-losses on the same rows.

A gain is in skill points: what the challenger takes off the champion's log-loss, over the log-loss of the champion's
baseline, which stays the same from challenger to challenger. Rows of one day go together. docs/gate.md has the rule,
and how often it is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tipline.errors import format_count
from tipline.evaluation.intervals import CONFIDENCE, MIN_DAYS, MIN_ROWS, Ratio
from tipline.evaluation.metrics import NEXT_TO_NOTHING
from tipline.evaluation.times import rank_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tipline.evaluation.metrics import Labels
    from tipline.model.pyfunc import Codes, Floats

    MadeOn = Mapping[str, Mapping[str, Sequence[str]] | None]

MIN_MONTHS = 6
NAMED_SEGMENTS = 3
# What a block may have of all weight. Around its own mean a block does not scatter: of one that has nearly all, the
# error would be next to nothing.
MOST_OF_ONE = 0.25
# How often equal models have to pass for a refusal to say much.
TELLING = 0.5
A_MONTH = np.timedelta64(1, "M")
# Raised when the rule changes: a verdict of another rule is not used.
RULE = 1
PURPOSES = {"train": "trained", "validation": "sized or calibrated"}
# The tag of a version whose model.json does not say which months it was made on.
MONTHS_TAG = "tipline.months"


@dataclass(frozen=True)
class Rows:
    """What the gate looks at, row by row.

    Attributes
    ----------
    names
        The months, in order of time; each row's `month` is a place among them.
    day
        Days since 1970.
    gain
        The champion's log-loss less the challenger's.
    baseline
        The log-loss of the champion's baseline.
    segments
        By column: the names of its segments, and each row's place among them.
    """

    names: Sequence[str]
    month: Codes
    day: Codes
    gain: Floats
    baseline: Floats
    labels: Labels
    segments: Mapping[str, tuple[Sequence[str], Codes]]

    def where(self, keep: Labels) -> Rows:
        """Some of the rows."""
        kept: Any = {name: getattr(self, name)[keep] for name in ("month", "day", "gain", "baseline", "labels")}
        segments = {column: (names, codes[keep]) for column, (names, codes) in self.segments.items()}
        return replace(self, **kept, segments=segments)

    def days(self) -> Codes:
        """Each row's day; one outside of its month counts as the nearest that has rows: no wrong clock adds a day."""
        days = self.day.copy()
        months = np.array(self.names, dtype="datetime64[M]")
        firsts, afters = (edge.astype("datetime64[D]").astype(np.int32) for edge in (months, months + A_MONTH))
        for place, (first, after) in enumerate(zip(firsts, afters, strict=True)):
            rows = self.month == place
            inside = self.day[rows & (self.day >= first) & (self.day < after)]
            low, high = (inside.min(), inside.max()) if len(inside) else (first, first)
            days[rows] = np.clip(self.day[rows], low, high)
        return days


@dataclass(frozen=True)
class Blocks:
    """What is taken as independent: `by` day, from six months on by month. `codes` is each row's, in order of time."""

    by: str
    days: Codes
    codes: Codes

    @classmethod
    def of(cls, rows: Rows) -> Blocks:
        """The blocks of rows."""
        days = rank_values(rows.days())
        if len(np.unique(rows.month)) >= MIN_MONTHS:
            return cls("month", days, rank_values(rows.month))
        return cls("day", days, days)

    def gain(self, rows: Rows, units: Floats, inside: Labels) -> Ratio | str:
        """The gain on some of the rows, or why they are too few."""
        there = [len(np.unique(codes[inside])) for codes in (self.days, self.codes)]
        if there[0] < MIN_DAYS:
            return f"only {format_count(there[0], 'day')} to judge on, {MIN_DAYS} are needed"
        if self.by == "month" and there[1] < MIN_MONTHS:
            return f"only {format_count(there[1], 'month')} to judge on, {MIN_MONTHS} are needed"
        codes = rank_values(self.codes[inside])
        gains, of_units = (np.bincount(codes, weights[inside]).astype(float) for weights in (rows.gain, units))
        share = of_units.max() / of_units.sum()
        if share > MOST_OF_ONE:
            return f"one {self.by} has {share:.0%} of the weight: the others do not show how much it scatters"
        return Ratio.estimate(gains, of_units)


def decide_promotion(rows: Rows, made_on: MadeOn, tolerance: float, segment_tolerance: float) -> dict[str, Any]:
    """The verdict.

    Parameters
    ----------
    made_on
        By `challenger` and `champion`: the months that it was fitted and sized on, as model.json has them; None, or
        none to fit on, where that is not known.
    tolerance
        Skill points that the challenger may be worse by: the one-sided 95% lower bound of its gain has to be above
        -tolerance.
    segment_tolerance
        The same of a segment, which vetoes where the challenger is shown to be worse: where its upper bound is below
        -segment_tolerance. The unit is the baseline's mean log-loss over all rows, because a segment's own can be
        next to nothing (cash). The bounds hold for all judged segments together (Bonferroni).

    Returns
    -------
    dict
        `promote`, `reasons` against it, `gain`, `power` (how often equal models would pass), the `months` judged on,
        those `dropped` with the reason, `segments`, and all that in `words`.
    """
    empty = [name for place, name in enumerate(rows.names) if not (rows.month == place).any()]
    dropped = dict.fromkeys(empty, "it has no row with a known target") | used(rows.names, made_on)
    months = [name for name in rows.names if name not in dropped]
    kept = rows.where(np.isin(rows.month, [rows.names.index(name) for name in months]))
    reasons = list(obstacles(kept, made_on))
    if reasons:
        return build_refusal(reasons, months, dropped)
    blocks = Blocks.of(kept)
    gain = blocks.gain(kept, kept.baseline, np.ones(len(kept.gain), bool))
    if isinstance(gain, str):
        return build_refusal([gain], months, dropped)
    segments = segments_of(kept, blocks, segment_tolerance)
    figures = {"gain": shown(gain, blocks.by), "power": gain.power(tolerance), "segments": segments}
    figures["tolerated"] = {"gain": tolerance, "segment": segment_tolerance}
    return worded(
        {"months": months, "dropped": dropped, **figures, "reasons": [*too_low(gain, tolerance), *vetoes(segments)]}
    )


def build_refusal(
    reasons: Sequence[str], months: Sequence[str] = (), dropped: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The verdict where nothing could be compared."""
    nothing: dict[str, Any] = {"gain": None, "power": None, "segments": []}
    return worded({"months": list(months), "dropped": dict(dropped or {}), **nothing, "reasons": list(reasons)})


def used(names: Sequence[str], made_on: MadeOn) -> dict[str, str]:
    """The months that a model was made on, with the reason why they cannot judge it."""
    return {
        name: f"the {role} was {PURPOSES[purpose]} on it"
        for role, months in made_on.items()
        for purpose in PURPOSES
        for name in (months or {}).get(purpose, ())
        if name in names
    }


def obstacles(rows: Rows, made_on: MadeOn) -> Iterator[str]:
    """Why these rows cannot judge."""
    for role in (role for role, months in made_on.items() if not (months or {}).get("train")):
        yield f"it is not known which months the {role} was made on: tag its version {MONTHS_TAG}=2009-01,2009-02"
    if not len(rows.gain):
        yield "no month is left to judge on"
        return
    if not (np.isfinite(rows.gain).all() and np.isfinite(rows.baseline).all()):
        yield "some rows have no log-loss"
    elif rows.baseline.mean() < NEXT_TO_NOTHING:
        yield "the baseline leaves nothing to gain on these rows"
    if rows.labels.all() or not rows.labels.any():
        yield f"{'all' if rows.labels.all() else 'none'} of the rows tipped"


def too_low(gain: Ratio, tolerance: float) -> Iterator[str]:
    """The reason of a gain that could be lower than is tolerated."""
    if not gain.lower() > -tolerance:
        yield f"its gain over the champion may be as low as {gain.lower():+.4f}, which is not above {-tolerance:+.4f}"


def vetoes(segments: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The reason of the segments in which the challenger is worse; the worst of them are named."""
    worse = sorted((segment for segment in segments if segment["veto"]), key=lambda segment: segment["upper"])
    named = [f"{one['column']} {one['value']} (gain below {one['upper']:+.4f})" for one in worse[:NAMED_SEGMENTS]]
    more = f" and {len(worse) - len(named)} more" if len(worse) > len(named) else ""
    if worse:
        segments_are = "the segment" if len(worse) == 1 else f"{len(worse)} segments:"
        yield f"it is worse on {segments_are} {', '.join(named)}{more}"


def segments_of(rows: Rows, blocks: Blocks, tolerance: float) -> list[dict[str, Any]]:
    """The segments: rows, days, gain with its bounds, or `why` there are none."""
    units = np.full(len(rows.gain), rows.baseline.mean())
    found = []
    for column, (names, codes) in rows.segments.items():
        for place in np.unique(codes):
            inside = codes == place
            rows_and_days = {"rows": int(inside.sum()), "days": len(np.unique(blocks.days[inside]))}
            named = {"column": column, "value": names[place], **rows_and_days}
            found.append((named, judged(rows, blocks, units, inside)))
    # All bounds together hold in 95 of 100 cases: a dozen segments at 5% each would stop every other equal model.
    confidence = 1 - (1 - CONFIDENCE) / max(sum(isinstance(gain, Ratio) for _, gain in found), 1)
    return [{**named, **bounded(gain, confidence, tolerance)} for named, gain in found]


def judged(rows: Rows, blocks: Blocks, units: Floats, inside: Labels) -> Ratio | str:
    """A segment's gain, or why it is not judged."""
    if inside.all():
        return "all rows are in it"
    if inside.sum() < MIN_ROWS:
        return f"fewer than {MIN_ROWS:,} rows"
    return blocks.gain(rows, units, inside)


def bounded(gain: Ratio | str, confidence: float, tolerance: float) -> dict[str, Any]:
    """A segment's gain, its bounds and whether it vetoes."""
    if isinstance(gain, str):
        return {"gain": None, "lower": None, "upper": None, "veto": False, "why": gain}
    lower, upper = gain.lower(confidence), gain.upper(confidence)
    return {"gain": gain.value, "lower": lower, "upper": upper, "veto": upper < -tolerance, "why": None}


def shown(gain: Ratio, by: str) -> dict[str, Any]:
    """The gain as json."""
    bounds = {"lower": gain.lower(), "upper": gain.upper()}
    return {"value": gain.value, **bounds, "error": gain.error, "blocks": gain.blocks, "by": by}


def worded(verdict: dict[str, Any]) -> dict[str, Any]:
    """The verdict with `promote` and with what it says, in words."""
    reasons, gain = verdict["reasons"], verdict["gain"]
    words = [f"The gate refuses it: {'; '.join(reasons)}." if reasons else "The gate lets it pass."]
    if gain:
        words.append(f"Its gain over the champion is {told(gain)}.")
        unsure = reasons and verdict["power"] < TELLING and gain["upper"] > 0
        little = ", so a refusal says little: raise sample.rows" if unsure else ""
        words.append(f"Of equal models {verdict['power']:.0%} would pass{little}.")
        unjudged = sum(segment["why"] is not None for segment in verdict["segments"])
        were = "was" if unjudged == 1 else "were"
        words += [f"{unjudged} of {len(verdict['segments'])} segments {were} not judged."] if unjudged else []
        words.append(f"Judged on {', '.join(verdict['months'])}; says nothing about months to come.")
    words += [f"Not on {month}: {why}." for month, why in verdict["dropped"].items()]
    return {"promote": not reasons, "words": " ".join(words), **verdict}


def told(gain: Mapping[str, Any]) -> str:
    """A gain in words."""
    bound = f"with 95% confidence above {gain['lower']:+.4f}, by {gain['blocks']} {gain['by']}s"
    return f"{gain['value']:+.4f} skill points ({bound})"
