"""Guess what the columns of a published month are, and draft a schema from its first rows."""

import collections
import csv
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from pyarrow import types

from tipline.ingest.readers import Month, is_parquet, list_files, open_text, read_pairs
from tipline.ingest.schema import READABLE, Csv, normalize_name
from tipline.ingest.texts import BOOLEANS, list_texts, read_numbers, read_times

DATES = ("%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%m/%d/%y", "%d/%m/%y", "%d.%m.%y")
CLOCKS = ("", " %H:%M:%S", " %H:%M", " %I:%M:%S %p", " %I:%M %p", ", %H:%M", "T%H:%M:%S")
FORMS = tuple(map("".join, itertools.product(DATES, CLOCKS)))
DATE = re.compile(r"\s*\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}")
# Seconds or milliseconds since 1970, of a time between 2000 and 2100.
EPOCHS = {"seconds": (946_684_800, 4_102_444_800), "milliseconds": (946_684_800_000, 4_102_444_800_000)}
IDENTIFIER = re.compile(r"(?:^|[^a-z])(?:id|key|uuid|guid|number|no|nr)$|[a-z]I[dD]$", re.IGNORECASE)
NULL_WORDS = {"na", "n/a", "#n/a", "none", "nil", "-", "--", "–", "—", "?"}  # noqa: RUF001 (dashes)
FEW_VALUES, MANY_VALUES = 50, 1000  # of a category
HEAD_BYTES = 2**20
MAX_INTEGER, MAX_EXACT = 2**31 - 1, 2**53  # of a prepared integer; of whole numbers that a double tells apart
UTC, ZONE = {"zone": "UTC"}, "the zone is the one whose local time the column gets, for example America/New_York"
Guess = tuple[dict[str, Any], list[str]]  # keys of a column of the schema, and what is doubtful


def guess_column(texts: Sequence[str], decimal: str = ".") -> Guess:
    """Guess type, forms and zone of a column from some of its values, none of them missing."""
    if texts and DATE.match(texts[0]):
        if read_times(texts, (), "UTC")[1].all():
            keys: dict[str, Any] = {"type": "timestamp"}
            return (keys, []) if read_times(texts, (), None)[1].all() else (keys | UTC, [ZONE])
        # One text rules most forms out.
        forms = [form for form in FORMS if all(read_times(t, (form,), None)[1].all() for t in (texts[:1], texts))]
        if forms:
            doubts = [f"the form may as well be {' or '.join(forms[1:])}"] if len(forms) > 1 else []
            return {"type": "timestamp", "formats": forms[:1]}, doubts
    has_codes = any(re.match(r"\s*0\d", text) for text in texts)  # 01234 would lose its zero
    if numbers := [] if has_codes else parse_numbers(texts, decimal):
        unit = next((unit for unit, (low, high) in EPOCHS.items() if all(low <= x < high for x in numbers)), None)
        if unit:
            doubt = f"the numbers are {unit} since 1970, or else of the type number"
            return {"type": "timestamp", "formats": [unit], **UTC}, [doubt, ZONE]
        largest, type_ = max(map(abs, numbers)), "number"
        if all(re.fullmatch(r"\s*[-+]?\d+(\.0+)?\s*", text) for text in texts):
            type_ = "integer" if largest <= MAX_INTEGER else "number" if largest < MAX_EXACT else "identifier"
        return {"type": type_}, []
    if texts and {normalize_name(text) for text in texts} <= BOOLEANS.keys():
        return {"type": "boolean"}, []
    return {"type": "category"}, []


def parse_numbers(texts: Sequence[str], decimal: str) -> list[float]:
    """Return texts as numbers; none if one of them is not finite or no number."""
    numbers = read_numbers([text.replace(decimal, ".") for text in texts])
    return numbers.tolist() if np.isfinite(numbers).all() else []


def guess_dialect(path: Path) -> tuple[Csv, list[str]]:
    """Guess how a CSV file is written, from its beginning, and say what is doubtful."""
    with open_text(path, "utf-8") as file:
        head = file.read(HEAD_BYTES)
    encoding, doubts = "utf-8", []
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif "\ufffd" in head.decode(errors="replace")[:-1]:
        encoding, doubts = "cp1252", ["it is not UTF-8, so the encoding is a guess"]
    lines = head.decode(encoding, errors="replace").lstrip("\ufeff").splitlines()[:100]
    rows = {delimiter: [*csv.reader(lines, delimiter=delimiter)] for delimiter in ",;\t|"}
    widths = {delimiter: collections.Counter(map(len, found)).most_common(1)[0] for delimiter, found in rows.items()}
    delimiter = max(widths, key=lambda one: (widths[one][0] > 1, widths[one][1], widths[one][0]))
    fields = list(itertools.chain(*rows[delimiter][1:]))
    commas, points = (sum(bool(re.fullmatch(rf"-?\d+{mark}\d+", field)) for field in fields) for mark in (",", r"\."))
    return Csv(delimiter=delimiter, encoding=encoding, decimal="," if commas > points else "."), doubts


def draft_schema(month: Month, first: str, names: Sequence[str]) -> str:
    """Draft a schema file from the first rows of the month `first`; folders in the `names` of its files are columns."""
    path = list_files(month.path)[0] if month.path.is_dir() else month.path
    csv_, doubts = (Csv(), []) if is_parquet(path) else guess_dialect(path)
    batch = next(month.batches(month.schema.names, []), None)
    rows = batch.values if batch else pa.RecordBatch.from_pylist([], month.schema)
    folders = [read_pairs(Path(name)) for name in names]
    columns = {
        name: pa.array(sorted({pairs[name] for pairs in folders})) if name in folders[0] else values
        for name, values in zip(rows.schema.names, rows.columns, strict=True)
    }
    given = {(text or "").strip() for values in columns.values() for text in list_texts(values)}
    if words := sorted(text for text in given if normalize_name(text) in NULL_WORDS):
        csv_ = csv_.model_copy(update={"null_values": (*csv_.null_values, *words)})
        doubts.append(f"{' and '.join(words)} may be a value in a column; here it stands for a missing one")
    nulls = {"", *map(normalize_name, csv_.null_values)}
    lines = [
        f"# Drafted by `tipline check --write` from the first {len(rows):,} rows of {path.name}. Look at each line,",
        "# above all below `check`, and mark what is known only after the outcome with `known_after_outcome: true`.",
        *format_yaml({"version": 1, "eras": {first: "the first months"}}),
        *(f"# check: {doubt}" for doubt in doubts),
    ]
    if dialect := csv_.model_dump(exclude_defaults=True):
        lines += format_yaml({"csv": dialect})
    lines += ["", "columns:"]
    keys: list[str] = []
    ignored = []
    for field, values in zip(rows.schema, columns.values(), strict=True):
        keys.append(name_column(field.name, keys))
        type_ = field.type.value_type if types.is_dictionary(field.type) else field.type
        if not any(test(type_) for tests, _ in READABLE.values() for test in [*tests, types.is_null]):
            ignored.append(field.name)
            continue
        column, doubts = draft_column(field.name, type_, values, nulls, csv_.decimal)
        described = {"type": column.pop("type"), "meaning": field.name, "names": {first: field.name}, **column}
        lines += [f"  # check: {doubt}" for doubt in doubts]
        lines += [f"  {line}" for line in format_yaml({keys[-1]: described})]
    return "\n".join([*lines, *(["", *format_yaml({"ignored": ignored})] if ignored else []), ""])


def draft_column(name: str, type_: pa.DataType, values: pa.Array, nulls: set[str], decimal: str) -> Guess:
    required = {} if values.null_count else {"required": True}
    if types.is_timestamp(type_) or types.is_date(type_):
        is_zoned = getattr(type_, "tz", None) is not None
        return {"type": "timestamp"} | (UTC if is_zoned else {}) | required, [ZONE] * is_zoned
    if types.is_boolean(type_):
        return {"type": "boolean"} | required, []
    texts = [text.strip() for text in list_texts(values) if text and normalize_name(text) not in nulls]
    counts = collections.Counter(texts)
    keys, doubts = guess_column([*counts], decimal)
    doubts = doubts if counts else ["all values are missing"]
    numbers = parse_numbers([*counts], decimal) if keys["type"] in {"integer", "number"} else []
    is_unique, is_named = len(counts) > max(0.9 * len(texts), FEW_VALUES), bool(IDENTIFIER.search(name))
    if (is_unique and is_named) or (keys["type"] == "category" and (is_unique or len(counts) > MANY_VALUES)):
        keys, numbers = {"type": "identifier"}, []
        doubts = [] if is_named else [f"{len(counts):,} different values in {len(texts):,} rows; a category has few"]
    elif keys["type"] == "category" and len(counts) <= FEW_VALUES:
        words = {normalize_name(text): text for text in reversed(counts)}  # the first of texts that differ in case
        keys["aliases"] = {text: [text] for text in reversed(words.values())}
    elif keys["type"] == "category":
        keys["open"] = True
        doubts = [f"{len(counts):,} different values in {len(texts):,} rows: category or identifier"]
    if numbers:
        limit = 10 ** math.ceil(math.log10(max(1, *map(abs, numbers))))
        keys["range"] = [-limit if min(numbers) < 0 else 0, limit]
        if keys["type"] == "integer" and len(counts) <= FEW_VALUES // 5:
            doubts = [f"if its values ({', '.join(sorted(counts))}) are codes, the type is category"]
    return keys | ({"required": True} if len(texts) == len(values) > 0 else {}), doubts


def name_column(name: str, taken: Sequence[str]) -> str:
    """Return a key for a published name: small letters, digits and underscores, unlike those that are taken."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    key = re.sub(r"\W+", "_", words).strip("_").casefold() or "column"
    key = f"column_{key}" if key[0].isdigit() or key == "row" else key
    names = itertools.chain([key], (f"{key}_{number}" for number in itertools.count(2)))
    return next(one for one in names if one not in taken)


def format_yaml(values: Mapping[str, Any]) -> Iterator[str]:
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, default_flow_style=None, width=math.inf)
    yield from text.splitlines()
