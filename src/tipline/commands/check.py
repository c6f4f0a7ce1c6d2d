"""`tipline check`: show how the months of a source would be read, from headers and footers alone."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tipline import config
from tipline.config import Settings
from tipline.errors import (
    NotPublishedError,
    TiplineError,
    UsageError,
    combine_failures,
    format_count,
    hide_secrets,
    shorten_text,
)
from tipline.ingest import readers, source, transfer
from tipline.ingest.schema import Schema, load_schema
from tipline.paths import Paths

HEAD_BYTES = 2**16
SHOWN_COLUMNS = 20


def run(settings: Settings, paths: Paths, source: str, months: Sequence[str]) -> Iterator[str]:
    """Yield lines about months of a source. Raises TiplineError after them if `prepare` would refuse a month."""
    try:
        config.check_source(source, needs_month=len(months) != 1)
    except ValueError as error:
        todo = "Name a path, https:// or s3:// address; for more than one month, with {month} in it."
        raise UsageError(f"{error}.", f"command line, {hide_secrets(source)}", todo) from None
    schema = load_schema(paths.root / settings.schema_)
    failed: dict[str, TiplineError] = {}
    for month in dict.fromkeys(months):
        try:
            yield from format_lines(month, *describe_month(source, month, schema))
        except TiplineError as error:
            if len(months) == 1:
                raise
            failed[month] = error
            titles = ((NotPublishedError, "not published"), (transfer.NoRangeError, "cannot be previewed"))
            title = next((title for kind, title in titles if isinstance(error, kind)), "cannot be prepared")
            yield from format_lines(month, title, {"error": str(error)})
    if failed:
        raise combine_failures(failed, len(months))


def describe_month(address: str, month: str, schema: Schema) -> tuple[str, dict[str, str]]:
    """Read the first bytes of a month and the footer of a Parquet file; return a title and facts by name."""
    location = source.format_address(address, month, Path.cwd())
    source.check_folder(address, location, Path.cwd())
    where = hide_secrets(location)
    with transfer.open_preview(location) as (stated, file):
        size, head = "unknown size" if stated.size is None else f"{stated.size:,} bytes", file.read(HEAD_BYTES)
        is_parquet = head.startswith(readers.MAGIC)
        try:
            if is_parquet:
                footer = pq.ParquetFile(file)
                columns, rows, groups = footer.schema_arrow, footer.metadata.num_rows, footer.num_row_groups
                title = f"Parquet, {size}, {format_count(rows, 'row')} in {format_count(groups, 'row group')}"
            else:
                source.check_head(head, where)
                columns = readers.read_header(head.partition(b"\n")[0])
                # As many rows as if all lines were as long as the first ones on average; one line is the header.
                rows = round((stated.size or 0) / len(head) * len(re.findall(rb"[^\r\n]+", head))) - 1
                title = f"CSV, {size}" + (f", about {format_count(rows, 'row')}" if stated.size else "")
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and type(error) is not OSError:
                raise  # of the connection; Arrow's own errors are of the general kind
            raise readers.explain_damage(error, where, month) from error
    match = schema.match(columns, f"{where}, month {month}")
    retyped = [
        f"{match.names[key]} is {shorten_text(type_)}, read as {schema.columns[key].type}"
        for key, type_ in match.types.items()
        if is_parquet and schema.columns[key].rank_type(type_) != 0  # all of a CSV file is text
    ]
    return title, {
        "era": f"{match.era}: {schema.eras[match.era]}",
        "columns": ", ".join(key if key == name else f"{key} = {name}" for key, name in match.names.items()),
        "ignored": ", ".join(shorten_text(name) for name in match.unknown[:SHOWN_COLUMNS]) or "-",
        "absent": ", ".join(key for key in schema.columns if key not in match.names) or "-",
        "retyped": ", ".join(retyped) or "-",
    }


def format_lines(month: str, title: str, facts: Mapping[str, str]) -> Iterator[str]:
    yield f"{month}  {title}"
    yield from (f"  {name:8} {text}" for name, text in facts.items())
