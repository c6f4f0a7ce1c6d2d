"""Quarantined rows, unknown and filled values of a prepared month: too many stop it, an unusual share is shown."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import yaml

from tipline.errors import TiplineError, format_count, shorten_text
from tipline.ingest import conform
from tipline.ingest.schema import Schema

MIN_QUARANTINED = 100  # rows; fewer do not stop a month
SHOWN_ROWS = 3
# By how much a share may lie above the median of all months.
UNUSUAL = {"quarantined rows": 0.01, "unknown": 0.05, "filled": 0.05}
# Of the labels in files of their own. Here the median does not matter: all months may be joined by the wrong column.
ODD_LABELS = {"unmatched": "labels without a trip", "conflicting": "labels that contradict each other"}
MAX_ODD_LABELS = 0.01


def check_losses(
    manifest: Mapping[str, Any],
    read_quarantine: Callable[[], pa.Table],
    schema: Schema,
    max_quarantined: float,
    accept: Mapping[str, str],
) -> None:
    """Raise TiplineError if a prepared month has lost too much, unless `accept` has it.

    That is all rows, MIN_QUARANTINED rows above the share `max_quarantined`, or most values of a required category.
    """
    month, rows, lost, problems = manifest["month"], manifest["rows_in"], manifest["quarantined"], []
    if lost == rows > 0 or (lost >= MIN_QUARANTINED and lost > max_quarantined * rows):
        problems.append(f"{lost:,} of {format_count(rows, 'row')} ({lost / rows:.1%}) cannot be read")
        problems += describe_losses(manifest, schema)
    unknown = [(*text.split(": ", 1), count) for text, count in manifest["unknown_aliases"].items()]
    for name, column in schema.columns.items():
        counts = Counter({alias: count for key, alias, count in unknown if key == name})
        if column.required and column.aliases and 2 * counts.total() > manifest["rows_out"]:
            example = shorten_text(counts.most_common(1)[0][0])
            what = f"{counts.total():,} values of {name} stand for none of {', '.join(column.aliases)}, such as "
            problems.append(f"{what}{example!r}; in the schema, {name}: {{aliases: {{VALUE: [{example!r}]}}}}")
    if problems and month not in accept:
        sample = read_quarantine().slice(0, SHOWN_ROWS).to_pylist()
        problems += [f"row {row['row']:,}: {shorten_text(row['raw'])}" for row in sample]
        todo = "Correct the schema, which `tipline check` tries out, or the file; or take the month as it is, with "
        todo += f"prepare.accept: {{{month}: REASON}} in params.yaml."
        raise TiplineError("\n  ".join(["The month would lose too much.", *problems]), f"month {month}", todo)


def describe_losses(counts: Mapping[str, Any], schema: Schema) -> Iterator[str]:
    """Yield why rows are quarantined: how many, a value, the forms that are accepted, what would accept the value."""
    for reason, count in sorted(counts["quarantined_by_reason"].items(), key=lambda item: -item[1]):
        name, example, text = reason.partition(" is not ")[0], counts["examples"].get(reason), ""
        if example is not None:
            from tipline.ingest import draft  # noqa: PLC0415 (imports pandas, which takes half a second)

            keys = draft.guess_column([example])[0]
            form = {name: keys} if keys["type"] != "category" else {"csv": {"null_values": [example]}}
            line = yaml.safe_dump(form, default_flow_style=True, sort_keys=False, width=math.inf).strip()[1:-1]
            line += " if that word stands for a missing value" if "csv" in form else ""
            accepted = conform.EXPECTED[schema.columns[name].type][1]
            text = f", for example {example!r}; accepted: {accepted}; in the schema, {line}"
        yield f"{reason}: {format_count(count, 'row')}{text}"


def find_unusual(manifests: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return, by month, shares of lost rows, unknown and filled values that other months lack, and of odd labels."""
    shares = {manifest["month"]: measure_shares(manifest) for manifest in manifests}
    unusual: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for found in shares.values() for name in found):
        limit = MAX_ODD_LABELS
        if name not in ODD_LABELS.values():
            limit = UNUSUAL[name.partition(" values")[0]]
            limit += statistics.median(found.get(name, 0) for found in shares.values())
        for month, found in shares.items():
            if found.get(name, 0) > limit:
                unusual.setdefault(month, []).append(f"{found[name]:.1%} {name}")
    return unusual


def measure_shares(manifest: Mapping[str, Any]) -> dict[str, float]:
    shares = {"quarantined rows": manifest["quarantined"] / (manifest["rows_in"] or 1)}
    labels = manifest.get("labels", {})
    shares |= {words: labels[name] / (labels["rows"] or 1) for name, words in ODD_LABELS.items() if labels}
    counts = [("unknown", key.partition(":")[0], count) for key, count in manifest["unknown_aliases"].items()]
    counts += [("filled", key, count) for key, count in manifest["filled"].items()]
    for kind, column, count in counts:
        name = f"{kind} values of {column}"
        shares[name] = shares.get(name, 0) + count / (manifest["rows_out"] or 1)
    return shares
