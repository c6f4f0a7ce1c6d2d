"""`tipline check`: show how the months of a source would be read, from their first rows; draft a schema from them."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tipline import config, files
from tipline.errors import MonthsFailedError, TiplineError, UsageError, format_count, hide_secrets, shorten_text
from tipline.ingest import conform, draft, losses, readers, source, transfer
from tipline.ingest.schema import Csv, Schema, format_names, load_schema
from tipline.paths import Paths

ROWS, HEAD_BYTES = 1000, 2**19


def run(
    settings: config.PartialSettings, paths: Paths, source: str, months: Sequence[str], write: str | None
) -> Iterator[str]:
    """Yield lines about months of a source, and raise TiplineError after them if `prepare` would refuse one."""
    try:
        config.check_source(source, needs_month=len(months) != 1)
    except ValueError as error:
        todo = "Name a path, https://, s3://, gs:// or abfs:// address; for more than one month, with {month} in it."
        raise UsageError(f"{error}.", f"command line, {hide_secrets(source)}", todo) from None
    if write is not None:
        if (path := Path(write)).exists():
            raise UsageError("This file exists already.", write, "Name another one, or remove it.")
        with open_preview(source, months[0], None) as (_, names, preview):
            files.write_text(path, draft.draft_schema(preview, months[0], names))
        yield f"{write}: drafted; correct the lines below `check`, then name it under `schema` in params.yaml"
        schema = load_schema(path)
    elif settings.settings is None:
        raise settings.problem or UsageError("There are no settings.", str(paths.params), "Correct the file.")
    else:
        schema = load_schema(paths.root / settings.settings.schema_)
    failed: list[str] = []
    for month in dict.fromkeys(months):
        try:
            with open_preview(source, month, schema.csv) as (title, _, preview):
                yield f"{month}  {title}"
                yield from describe_month(preview, month, schema)
        except TiplineError as error:
            if len(months) == 1:
                raise
            failed.append(month)
            yield f"{month}  {error}"
    if failed:
        what, todo = f"{len(failed)} of {len(months)} months failed.", "The reasons are printed above."
        raise MonthsFailedError(what, ", ".join(failed), todo)


@contextlib.contextmanager
def open_preview(address: str, month: str, dialect: Csv | None) -> Iterator[tuple[str, list[str], readers.Month]]:
    """Fetch the first rows of a month into a file; yield a title, the names of the month's files, and that file."""
    listed = source.list_addresses(address, month, Path.cwd())
    location, name = listed[-1]  # of a month's days, the last ones say most about the form of dates
    where = hide_secrets(location)
    with transfer.open_preview(location) as (stated, file), tempfile.TemporaryDirectory() as folder:
        size = "unknown size" if stated.size is None else f"{stated.size:,} bytes"
        head, path = file.read(HEAD_BYTES), Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if head.startswith(readers.MAGIC):
                footer = pq.ParquetFile(file, buffer_size=2**18)  # not whole row groups
                rows, groups = footer.metadata.num_rows, footer.num_row_groups
                title = f"Parquet, {size}, {format_count(rows, 'row')} in {format_count(groups, 'row group')}"
                first = next(footer.iter_batches(ROWS, [0], use_threads=False), None) if groups else None
                pq.write_table(pa.Table.from_batches([first] if first else [], footer.schema_arrow), path)
            else:
                text = readers.decompress_head(head)
                source.check_head(text, where)
                rows = round((stated.size or 0) / len(head) * text.count(b"\n")) - 1
                kind = "CSV" if text is head else "compressed CSV"
                title = f"{kind}, {size}" + (f", about {format_count(rows, 'row')}" if stated.size else "")
                path.write_bytes(text[: text.rfind(b"\n") + 1] if len(head) == HEAD_BYTES else text)
            if len(listed) > 1:
                title += f"; the last of {len(listed):,} files, {shorten_text(name)}"
            preview = readers.open_month(Path(folder), month, dialect or draft.guess_dialect(path)[0])
            yield title, [name for _, name in listed], preview
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and type(error) is not OSError:
                raise  # of the connection; Arrow's own errors are of the general kind
            raise readers.explain_damage(error, where, month) from error


def describe_month(preview: readers.Month, month: str, schema: Schema) -> Iterator[str]:
    """Yield what each column becomes, with an example, and which of the first rows cannot be read."""
    where = f"{preview.path.name}, month {month}"
    match = schema.match(preview.schema, where, lambda name: readers.get_example(preview, name))
    conformer, names = conform.Conformer(schema, match.names, month), list(match.names.values())
    batch = next(preview.batches(names, names), None)
    yield f"  era      {match.era}: {schema.eras[match.era]}"
    if batch is not None:
        malformed = [row for row in batch.malformed if row[0] < ROWS]
        rows = batch.rows[: ROWS - len(malformed)]
        batch = dataclasses.replace(batch, rows=rows, values=batch.values.slice(0, len(rows)), malformed=malformed)
        trips = conformer.conform(batch)[0]
        position = {int(row): index for index, row in enumerate(rows)}
        for key, name in match.names.items():
            column, example = schema.columns[key], "no value"
            if len(found := trips.filter(trips[key].is_valid())):
                index = position[found["row"][0].as_py()]
                published = readers.convert_to_json(batch.values[name].slice(index, 1))[0]
                prepared = readers.convert_to_json(found[key].slice(0, 1))[0]
                example = f"{shorten_text(published)!r} -> {shorten_text(prepared)}"
            yield f"  {key:24} {column.type:10} {name}, {shorten_text(match.types[key])}: {example}"
        count = format_count(len(rows) + len(malformed), "row")
        yield f"  quarantined  {conformer.quarantined.total():,} of the first {count}"
        counts = {"quarantined_by_reason": conformer.quarantined, "examples": conformer.examples}
        yield from (f"    {line}" for line in losses.describe_losses(counts, schema))
        if unknown := [f"{name} ({count:,})" for name, count in conformer.unknown_aliases.most_common()]:
            yield f"  unknown  {format_names(unknown)}"
    yield f"  ignored  {format_names(match.unknown) or '-'}"
    yield f"  absent   {', '.join(key for key in schema.columns if key not in match.names) or '-'}"
