"""Write the monitoring page: one HTML file that opens from disk, with verdicts, charts and tables."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tipline import files
from tipline.monitoring.verdict import KEEP, NO_LABELS, RETRAIN

SHOWN_FEATURES = 20  # of wide data, the features that drifted most; the others are folded
SYMBOLS = {KEEP: "✓", RETRAIN: "✗", NO_LABELS: "?"}


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
    text = environment.get_template("page.html").render(
        months=months,
        symbols=SYMBOLS,
        verdicts=Counter(month["verdict"] for month in months),
        latest=next((month for month in reversed(months) if month["verdict"] != NO_LABELS), months[-1]),
        picture=base64.b64encode(picture.read_bytes()).decode(),
        features=features[:SHOWN_FEATURES],
        folded=features[SHOWN_FEATURES:],
        groups=sorted({name for month in months for name in month["groups"]}),
    )
    files.write_text(path, text)


def format_number(value: float | None, form: str) -> str:
    return "\N{EN DASH}" if value is None else format(value, form).replace("-", "\N{MINUS SIGN}")
