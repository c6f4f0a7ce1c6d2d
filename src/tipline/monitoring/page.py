"""Write the monitoring page: one HTML file that opens from disk, with verdicts, charts and tables."""

import base64
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tipline import files
from tipline.errors import format_count
from tipline.monitoring.causes import CHECK_SOURCE, KEEP, NO_LABELS, RECALIBRATE, RETRAIN

SHOWN_FEATURES = 20  # of wide data, the features that drifted most; the others are folded
RECENT_MONTHS = 6  # earlier ones are folded by year
SYMBOLS = {KEEP: "✓", RETRAIN: "✗", RECALIBRATE: "✗", CHECK_SOURCE: "✗", NO_LABELS: "?"}
SHOWN_VALUES = 5  # of a feature
SHOWN_CHANGES = 15
MORE_MISSING = 0.01  # than in training, as a share of the rows


def write_page(path: Path, months: Sequence[Mapping[str, Any]], picture: Path) -> None:
    """Write the page of these months (`verdict.summarize_month` with `month` and `role`), and their picture in it."""
    loader = PackageLoader("tipline.monitoring", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["number"] = format_number
    drifts = [item for month in months if month["drift"] for item in month["drift"]["features"].items()]
    largest: dict[str, tuple[bool, float]] = {}  # drift of any month, by feature
    for name, drift in drifts:
        largest[name] = max(largest.get(name, (False, 0.0)), (bool(drift["flagged"]), drift["psi"] or 0.0))
    features = sorted(largest, key=lambda name: largest[name], reverse=True)
    newest = months[::-1]
    earlier = itertools.groupby(newest[RECENT_MONTHS:], lambda month: month["month"][:4])
    years = [(year, found, count_verdicts(found)) for year, group in earlier for found in [list(group)]]
    text = environment.get_template("page.html").render(
        recent=newest[:RECENT_MONTHS],
        years=years,
        counted=count_verdicts(months),
        find_changes=find_changes,
        symbols=SYMBOLS,
        latest=next((month for month in reversed(months) if month["verdict"] != NO_LABELS), months[-1]),
        picture=base64.b64encode(picture.read_bytes()).decode(),
        features=features[:SHOWN_FEATURES],
        folded=features[SHOWN_FEATURES:],
        groups=sorted({name for month in months for name in month["groups"]}),
    )
    files.write_text(path, text)


def count_verdicts(months: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter(month["verdict"] for month in months)
    return f"{format_count(len(months), 'month')}: {', '.join(f'{count} {name}' for name, count in counts.items())}"


def find_changes(months: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Return feature, change and months of new values and of values that are missing more often than in training."""
    new: dict[str, Counter[str]] = {}
    found: dict[tuple[str, str], list[str]] = {}
    for month in months:
        for name, drift in month["drift"]["features"].items() if month["drift"] else ():
            if drift["new"]:
                new.setdefault(name, Counter()).update(drift["new"])
                found.setdefault((name, "new"), []).append(month["month"])
            rate, usual = drift["missing_rate"] or 0, drift["reference_missing_rate"] or 0
            if rate > usual + MORE_MISSING:
                words = f"missing ({usual:.1%} of the rows in training)"
                found.setdefault((name, words), []).append(f"{month['month']}: {rate:.1%}")
    changes = []
    for (name, change), where in found.items():
        words = change
        if change == "new":
            values = [f"{value} ({format_count(rows, 'row')})" for value, rows in new[name].most_common(SHOWN_VALUES)]
            rest = [f"{len(new[name]) - SHOWN_VALUES} more"] if len(new[name]) > SHOWN_VALUES else []
            words = f"new: {', '.join(values + rest)}"
        changes.append((name, words, ", ".join(where)))
    more = [(f"{len(changes) - SHOWN_CHANGES} more", "see months.json", "")] if len(changes) > SHOWN_CHANGES else []
    return changes[:SHOWN_CHANGES] + more


def format_number(value: float | None, form: str) -> str:
    return "\N{EN DASH}" if value is None else format(value, form).replace("-", "\N{MINUS SIGN}")
