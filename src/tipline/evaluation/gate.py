"""The gate: may a challenger replace the champion? Decided from the log-losses of both on the same rows.

A gain is in skill points: the log-loss that the challenger takes off the champion's, divided by the log-loss of the
champion's baseline, which stays the same from challenger to challenger. docs/statistics.md has the rule and its errors.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np

from tipline.arrays import Codes, Floats, Labels
from tipline.errors import format_count
from tipline.evaluation.intervals import CONFIDENCE, MIN_ROWS, Ratio, find_shortage
from tipline.evaluation.metrics import NEXT_TO_NOTHING, rank_values

MadeOn = Mapping[str, Mapping[str, Sequence[str]] | None]

MIN_MONTHS = 6
MIN_POWER = 0.5  # below this, a refusal says little
MAX_NAMED_SEGMENTS = 3
UNADJUSTED = " Compared with the current champion alone, and not adjusted for how often these months were used before."
PURPOSES = {"train": "trained", "validation": "sized or calibrated"}
# The tag of a version whose model.json does not have the months that it was made on.
MONTHS_TAG = "tipline.months"


@dataclass(frozen=True)
class Rows:
    """The rows that the gate judges on. Days are the blocks; with six months or more, months are."""

    names: Sequence[str]  # the months in order of time
    month: Codes  # positions in `names`
    day: Codes  # days since 1970
    gain: Floats  # the champion's log-loss less the challenger's
    baseline: Floats  # the log-loss of the champion's baseline
    labels: Labels
    segments: Mapping[str, tuple[Sequence[str], Codes]]  # by column: names of its segments, positions among them

    def select(self, keep: Labels) -> Self:
        kept: Any = {name: getattr(self, name)[keep] for name in ("month", "day", "gain", "baseline", "labels")}
        segments = {column: (names, codes[keep]) for column, (names, codes) in self.segments.items()}
        return replace(self, **kept, segments=segments)

    @cached_property
    def days(self) -> Codes:
        """Days, moved to the nearest day of their month that has rows, so that wrong clocks add no days."""
        days, months = self.day.copy(), np.array(self.names, "datetime64[M]")
        inside = self.day.astype("datetime64[D]").astype("datetime64[M]") == months[self.month]
        for code in np.unique(self.month):
            rows = self.month == code
            own = self.day[rows & inside] if (rows & inside).any() else self.day[rows][:1]
            days[rows] = np.clip(self.day[rows], own.min(), own.max())
        return days

    @cached_property
    def by(self) -> str:
        return "month" if len(np.unique(self.month)) >= MIN_MONTHS else "day"

    @cached_property
    def blocks(self) -> Codes:
        return self.month if self.by == "month" else self.days

    def estimate_gain(self, units: Floats, inside: Labels) -> Ratio | str:
        blocks = rank_values(self.blocks[inside])
        days, count = len(np.unique(self.days[inside])), len(np.unique(blocks))
        if self.by == "month" and count < MIN_MONTHS:
            return f"only {format_count(count, 'month')} to judge on, {MIN_MONTHS} are needed"
        gains, weights = (np.bincount(blocks, values[inside]).astype(float) for values in (self.gain, units))
        surprises = int((self.baseline[inside] > math.log(2)).sum())
        shortage = find_shortage(weights, days, surprises, self.by)
        return shortage or Ratio.estimate(gains, weights, are_days=self.by == "day")


def decide_promotion(rows: Rows, made_on: MadeOn, tolerance: float, segment_tolerance: float) -> dict[str, Any]:
    """Decide whether the challenger may replace the champion.

    `made_on` has the months of `challenger` and `champion` by purpose, `train` and `validation`; None if they are not
    known. The one-sided 95% lower bound of the gain has to be above -tolerance, and no segment's upper bound below
    -segment_tolerance. The verdict has `promote` and the `reasons` against it, `words` for a person, the `months`
    judged on and those `dropped`, `gain`, `power` (how often equal models would pass), `segments`, `tolerated`.
    """
    empty = [name for code, name in enumerate(rows.names) if not (rows.month == code).any()]
    used = {
        name: f"the {role} was {PURPOSES[purpose]} on it"
        for role, purposes in made_on.items()
        for purpose in PURPOSES
        for name in (purposes or {}).get(purpose, ())
        if name in rows.names
    }
    dropped = dict.fromkeys(empty, "it has no row with a known target") | used
    months = [name for name in rows.names if name not in dropped]
    kept = rows.select(np.isin(rows.month, [rows.names.index(name) for name in months]))
    if reasons := list(find_obstacles(kept, made_on)):
        return build_verdict(reasons, months, dropped)
    gain = kept.estimate_gain(kept.baseline, np.ones(len(kept.gain), bool))
    if isinstance(gain, str):
        return build_verdict([gain], months, dropped)
    (lower, upper), segments = gain.bounds(), judge_segments(kept, segment_tolerance)
    if not lower > -tolerance:
        reasons.append(
            f"its gain over the champion may be as low as {lower:+.4f}, which is not above {-tolerance:+.4f}"
        )
    worse = sorted((segment for segment in segments if segment["veto"]), key=lambda segment: segment["upper"])
    if worse:
        worst = worse[:MAX_NAMED_SEGMENTS]
        names = ", ".join(f"{one['column']} {one['value']} (gain below {one['upper']:+.4f})" for one in worst)
        more = f" and {len(worse) - len(worst)} more" if len(worse) > len(worst) else ""
        reasons.append(f"it is worse on {format_count(len(worse), 'segment')}: {names}{more}")
    bounds = {"value": gain.value, "lower": lower, "upper": upper, "error": gain.error}
    figures = {
        "gain": {**bounds, "blocks": len(np.unique(kept.blocks)), "by": kept.by},
        "power": gain.power(tolerance),
        "segments": segments,
        "tolerated": {"gain": tolerance, "segment": segment_tolerance},
    }
    return build_verdict(reasons, months, dropped, figures)


def find_obstacles(rows: Rows, made_on: MadeOn) -> Iterator[str]:
    for role, months in made_on.items():
        if not (months or {}).get("train"):
            yield f"it is not known which months the {role} was made on: tag its version {MONTHS_TAG}=2009-01,2009-02"
    if not len(rows.gain):
        yield "no month is left to judge on"
        return
    if rows.baseline.mean() < NEXT_TO_NOTHING:
        yield "the baseline leaves nothing to gain on these rows"
    if rows.labels.all() or not rows.labels.any():
        yield "all rows have the same label"


def judge_segments(rows: Rows, tolerance: float) -> list[dict[str, Any]]:
    """Return rows, days and gain of each segment with its bounds, or `why` it is not judged."""
    # A segment's own mean can be close to zero (cash).
    units = np.full(len(rows.gain), rows.baseline.mean())
    segments: list[tuple[dict[str, Any], Ratio | str]] = []
    for column, (names, codes) in rows.segments.items():
        for code in np.unique(codes):
            inside = codes == code
            count, days = int(inside.sum()), len(np.unique(rows.days[inside]))
            if inside.all():
                gain: Ratio | str = "all rows are in it"
            elif count < MIN_ROWS:
                gain = f"fewer than {MIN_ROWS:,} rows"
            else:
                gain = rows.estimate_gain(units, inside)
            segments.append(({"column": column, "value": names[code], "rows": count, "days": days}, gain))
    # All bounds together hold in 95 of 100 cases. With 5% each, a dozen segments would stop every other equal model.
    confidence = 1 - (1 - CONFIDENCE) / max(sum(isinstance(gain, Ratio) for _, gain in segments), 1)
    for segment, gain in segments:
        segment |= {"gain": None, "lower": None, "upper": None, "veto": False, "why": None}
        if isinstance(gain, str):
            segment["why"] = gain
            continue
        lower, upper = gain.bounds(confidence)
        segment |= {"gain": gain.value, "lower": lower, "upper": upper, "veto": upper < -tolerance}
    return [segment for segment, _ in segments]


def add_reason(verdict: Mapping[str, Any], reason: str) -> dict[str, Any]:
    figures = {name: verdict[name] for name in ("gain", "power", "segments", "tolerated")}
    return build_verdict([*verdict["reasons"], reason], verdict["months"], verdict["dropped"], figures)


def describe_decisions(before: int, refused: int) -> str:
    """Say how often the test months were used before, and what that does to the gate's error rate."""
    if not before:
        return ""
    wrong, times = 1 - CONFIDENCE ** (before + 1), format_count(before, "decision")
    return (
        f" These test months have been used for {times} before ({refused} refused). After {before + 1} decisions the "
        f"chance that at least one challenger worse by the tolerance passes is up to {wrong:.0%}."
    )


def build_verdict(
    reasons: Sequence[str],
    months: Sequence[str] = (),
    dropped: Mapping[str, str] | None = None,
    figures: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the verdict, with `words` for a person; without `figures`, the models could not be compared."""
    words = [f"The gate refuses it: {'; '.join(reasons)}." if reasons else "The gate lets it pass."]
    if figures:
        gain, power, segments = figures["gain"], figures["power"], figures["segments"]
        bound = f"with 95% confidence above {gain['lower']:+.4f}, by {gain['blocks']} {gain['by']}s"
        words.append(f"Its gain over the champion is {gain['value']:+.4f} skill points ({bound}).")
        weak = reasons and power < MIN_POWER and gain["upper"] > 0
        advice = ", so a refusal says little; raise sample.rows" if weak else ""
        words.append(f"Equal models would pass in {power:.0%} of cases{advice}.")
        unjudged = sum(segment["why"] is not None for segment in segments)
        words += [f"{unjudged} of {len(segments)} segments could not be judged."] if unjudged else []
        words.append(f"Judged on {', '.join(months)}; says nothing about months to come.")
    words += [f"Not judged on {month}: {why}." for month, why in (dropped or {}).items()]
    verdict = {"promote": not reasons, "words": " ".join(words), "reasons": list(reasons), "months": list(months)}
    nothing: Mapping[str, Any] = {"gain": None, "power": None, "segments": []}
    return {**verdict, "dropped": dict(dropped or {}), **(figures or nothing)}
