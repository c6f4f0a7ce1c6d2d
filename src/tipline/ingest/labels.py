"""Labels in files of their own, in pieces and in any order: fill in the target's columns of trips by identifier.

A label takes 17 bytes of memory: identifiers are compared by hashes, and values are kept as codes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tipline import files
from tipline.arrays import Values, mix_bits
from tipline.ingest import readers
from tipline.ingest.conform import Conformer, encode_values
from tipline.ingest.schema import Match, Schema

SEEDS = (0x9E3779B97F4A7C15, 0xD1B54A32D192ED03)
WORD_BYTES = 8
MASKS = np.array([2 ** (8 * size) - 1 for size in range(WORD_BYTES + 1)], np.uint64)  # the first bytes of a word


@dataclass(frozen=True)
class LabelFiles:
    """The label files of a month: a folder, the identifiers that join them, the target's columns that they hold."""

    folder: Path
    on: tuple[str, ...]
    columns: tuple[str, ...]

    def match(self, schema: Schema, month: str) -> tuple[readers.Month, Schema, Match]:
        """Open the files and map their columns to a part of the schema; errors are those of `Schema.match`."""
        published = readers.open_month(self.folder, month, schema.csv)
        needed = {name: schema.columns[name].model_copy(update={"required": True}) for name in self.on + self.columns}
        part = schema.model_copy(update={"columns": needed})
        matches = [part.match(one, f"labels {published.path.name}, month {month}") for one in published.schemas]
        return published, part, matches[0]

    def describe(self, schema: Schema, month: str, aliases: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the labels of a prepared month depend on, for its manifest."""
        _, part, match = self.match(schema, month)
        digest = files.hash_json([self.on, self.columns, part.describe_mapping(match, aliases)])
        return {"digest": digest, "aliases": dict(aliases), "published": readers.describe_published(self.folder)}


class Labels:
    """The labels of a month, the last one of each identifier in the order of the files, and `counts` of all of them."""

    def __init__(self, source: LabelFiles, schema: Schema, month: str) -> None:
        self.on, keys, columns, self.aliases, rows = source.on, *read_labels(source, schema, month)
        order = np.argsort(keys[0], kind="stable")  # equal keys stay in the order of the files
        first, second = (key[order] for key in keys)
        if ((first[1:] == first[:-1]) & (second[1:] != second[:-1])).any():
            order = np.lexsort(keys[::-1])  # takes three times as long
            first, second = (key[order] for key in keys)
        is_last, differs = np.ones(len(order), np.bool_), np.zeros(len(order), np.bool_)
        is_last[:-1] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
        for column in columns.values():
            code = column.indices.to_numpy()[order]
            differs[1:] |= ~is_last[:-1] & (code[1:] != code[:-1])
        ends = np.flatnonzero(is_last)
        self.first, self.second, self.is_used = first[is_last], second[is_last], np.zeros(len(ends), np.bool_)
        kept = pa.array(order[is_last])
        self.values = {name: column.take(kept) for name, column in columns.items()}
        self.counts = {"rows": rows, "incomplete": rows - len(order), "duplicates": len(order) - len(ends)}
        self.counts["conflicting"] = len(np.unique(np.searchsorted(ends, np.flatnonzero(differs))))
        self.counts |= {"unmatched": len(ends), "matched": 0, "replaced": 0, "unlabelled": 0}

    def fill(self, trips: pa.RecordBatch) -> pa.RecordBatch:
        """Return trips with the labels of their identifiers; trips without one keep the values that they have."""
        places, own_labels, labels = self._find(trips), list[pa.Array](), list[pa.Array]()
        self.is_used[places.drop_null()] = True
        for name, values in self.values.items():
            own, given = trips[name], values.take(places).dictionary_decode()
            filled = pc.coalesce(given, own.cast(given.type)).cast(own.type)
            own_labels.append(own.is_valid())
            labels.append(filled.is_valid())
            trips = trips.set_column(trips.schema.get_field_index(name), trips.schema.field(name), filled)
        matched = places.is_valid()
        changes = {"matched": matched, "replaced": reduce(pc.and_, own_labels, matched)}
        changes["unlabelled"] = pc.invert(reduce(pc.and_, labels))
        self.counts |= {name: self.counts[name] + rows.true_count for name, rows in changes.items()}
        self.counts["unmatched"] = len(self.is_used) - int(np.count_nonzero(self.is_used))
        return trips

    def _find(self, trips: pa.RecordBatch) -> pa.Array:
        """Return the place of the label of each trip, null for a trip without one."""
        first, second = hash_rows(trips.select(self.on))
        is_open = reduce(pc.and_, (trips[name].is_valid() for name in self.on)).to_numpy(zero_copy_only=False).copy()
        places, order, is_found = np.zeros(len(trips), np.int64), np.argsort(first), np.zeros(len(trips), np.bool_)
        places[order] = np.searchsorted(self.first, first[order])  # sorted, because random access is slow
        while (rows := np.flatnonzero(is_open & (places < len(self.first)))).size:  # once, unless first parts collide
            is_equal = self.first[places[rows]] == first[rows]
            is_found[rows] = is_equal & (self.second[places[rows]] == second[rows])
            is_open[:] = False
            is_open[rows] = is_equal & ~is_found[rows]
            places += is_open
        return pa.array(places, mask=~is_found)


def read_labels(
    source: LabelFiles, schema: Schema, month: str
) -> tuple[list[Values], dict[str, pa.DictionaryArray], dict[str, Any], int]:
    """Return hashed identifiers, encoded values, aliases of categories and the number of rows of label files.

    A row that cannot be read, or that lacks an identifier or a value, is left out.
    """
    published, part, match = source.match(schema, month)
    time = {schema.time: schema.columns[schema.time]}  # a conformer needs one; labels have none
    conformer = Conformer(part.model_copy(update={"columns": time | part.columns}), match.names, month)
    categories = [name for key, name in match.names.items() if part.columns[key].type == "category"]
    batches = list[pa.RecordBatch]()
    hashes: tuple[list[Values], list[Values]] = ([np.empty(0, np.uint64)], [np.empty(0, np.uint32)])
    with readers.report_damage(published.path.name, month):
        for batch in published.batches(list(match.names.values()), categories):
            labels = conformer.conform(batch)[0].select([*source.on, *source.columns]).drop_null()
            for parts, values in zip(hashes, hash_rows(labels.select(source.on)), strict=True):
                parts.append(values)
            batches.append(labels.select(source.columns))
    types = pa.schema([part.arrow_schema.field(name) for name in source.columns])
    table = pa.Table.from_batches(batches, types).unify_dictionaries()
    columns = {name: encode_values(table[name].combine_chunks()) for name in source.columns}
    return [np.concatenate(parts) for parts in hashes], columns, conformer.aliases, published.rows


def hash_rows(columns: pa.RecordBatch) -> tuple[Values, Values]:
    """Return 96 bits of hashes of each row's texts, as 64 and 32: two of 30 million rows clash in 1 of 1e14 months."""
    first, second = (np.full(len(columns), seed, np.uint64) for seed in SEEDS)
    for column in columns.columns if len(columns) else ():
        offsets = np.frombuffer(column.buffers()[1], np.int32, len(column) + 1, 4 * column.offset)
        letters = np.frombuffer(column.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
        padded = np.concatenate([letters, np.zeros(WORD_BYTES, np.uint8)])
        words = np.ndarray(len(letters) + 1, np.uint64, padded, strides=(1,))  # the word that begins at each byte
        starts, lengths = offsets[:-1] - offsets[0], np.diff(offsets)
        for place in range(0, int(lengths.max()), WORD_BYTES):
            rows = np.flatnonzero(lengths > place)
            word = words[starts[rows] + place] & MASKS[np.minimum(lengths[rows] - place, WORD_BYTES)]
            first[rows], second[rows] = mix_bits(first[rows] ^ word), mix_bits(second[rows] ^ word)
        first, second = (mix_bits(part ^ lengths.astype(np.uint64)) for part in (first, second))
    return first, second.astype(np.uint32)
