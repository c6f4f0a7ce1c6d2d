"""Fitted ensembles of trees as arrays, and their scores for many rows at once, equal to those of `predict_proba`.

All libraries compare values with thresholds, so a value is first replaced by its code: how many thresholds of its
column are below it. Then the leaves of a row are found in one of two ways. By bits: for each code and tree, a bit
vector of the leaves that it still allows is stored, and the leftmost one that all columns of a row allow is its leaf
(QuickScorer, Lucchese et al., SIGIR 2015; RapidScorer, Ye et al., KDD 2018). By steps: from the root to a leaf, for all
rows of a block together. Bits are faster where trees are small and columns few.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tipline.arrays import CHUNK_ROWS, Floats

Array = np.ndarray[Any, Any]
Interval = tuple[Array, Array]
Column = Callable[[slice, Floats], object]  # writes the values of a slice of rows
AddLeaves = Callable[[Array, Array], None]  # adds the leaves of rows with these codes to their sums

# A node. A row goes left if its value is at most the threshold or, where `set` is not negative, if it is in that set of
# categories; `missing_left` says where it goes without a value, or with one that is no category. `zero_missing` says
# whether a value near zero is a missing one. `left` is -1 for a leaf.
NODE = np.dtype("i4, i4, i4, i4, f8, f8, ?, ?")
NODE.names = ("column", "left", "right", "set", "threshold", "leaf", "missing_left", "zero_missing")
XGBOOST_LIMIT = 88.7  # of an exponent, so that the largest one does not overflow
NEAR_ZERO = float(np.float32(1e-35))  # what LightGBM takes for zero
ABSENT, ZERO = 0, 1  # how LightGBM handles missing values of a node: as zeros, or zeros as missing ones

BLOCK_ROWS = 256  # whose codes stay in the cache of a core
MAX_COLUMNS, MAX_CODES, MAX_SETS = 2**14, 2**16 - 2, 2**16
SMALL_WORD, WORD = 32, 64  # bits
GROUP_BYTES, MAX_TABLE_BYTES = 2**21, 2**26  # of bit vectors: of trees that are evaluated together, of all trees
# ns of the innermost loops on one core, per byte of bit vectors, per tree and per step, and a step's with sets.
BYTE_NS, TREE_NS, STEP_NS, SET_STEP_NS = 0.025, 0.4, 1.2, 1.9


@dataclass
class Ensemble:
    """The trees of a binary classifier: the logistic function of `scale` times the sum of `start` and the leaves."""

    trees: Sequence[Array]  # of NODE, the root first
    start: Any
    dtype: Any = np.float64  # the precision of the sum
    scale: float = 1.0
    limit: float = np.inf  # of the exponent
    is_prior: bool = False  # whether `start` is a probability, whose log-odds are added
    sets: Sequence[Array] = ()  # of each tree, shape (sets, categories): whether a category goes left
    # The interval of values, low < value <= high, of each category, by column.
    intervals: Mapping[int, Interval] = field(default_factory=dict)


# ---- from the libraries ----


def convert_classifier(classifier: Any) -> Ensemble | None:  # noqa: ANN401 (a classifier of any package)
    """Return the trees of a fitted classifier; None for one that is not a binary one of these three in a known form."""
    converters = {
        ("sklearn", "HistGradientBoostingClassifier"): convert_hist_gradient_boosting,
        ("lightgbm", "LGBMClassifier"): convert_lightgbm,
        ("xgboost", "XGBClassifier"): convert_xgboost,
    }
    convert = converters.get((type(classifier).__module__.partition(".")[0], type(classifier).__name__))
    return convert(classifier) if convert and len(classifier.classes_) == 2 else None  # noqa: PLR2004


def convert_hist_gradient_boosting(classifier: Any) -> Ensemble:  # noqa: ANN401
    columns, intervals, trees, sets = np.arange(classifier.n_features_in_), dict[int, Interval](), [], []
    if classifier.is_categorical_ is not None:  # these come first inside, and as the places of their values
        columns = np.argsort(~classifier.is_categorical_, kind="stable")
        encoder = classifier._preprocessor.named_transformers_["encoder"]  # noqa: SLF001 (there is no public access)
        for column, values in zip(columns.tolist(), encoder.categories_, strict=False):
            known = values[~np.isnan(values)]
            if len(known):
                intervals[column] = np.nextafter(known, -np.inf), known
    for (predictor,) in classifier._predictors:  # noqa: SLF001
        nodes = predictor.nodes
        tree = np.zeros(len(nodes), NODE)
        tree["column"], tree["threshold"] = columns[nodes["feature_idx"]], nodes["num_threshold"]
        tree["missing_left"], tree["leaf"] = nodes["missing_go_to_left"], nodes["value"]
        tree["left"], tree["right"] = np.where(nodes["is_leaf"], -1, nodes["left"]), nodes["right"]
        tree["set"] = np.where(nodes["is_categorical"], nodes["bitset_idx"], -1)
        trees.append(tree)
        sets.append(unpack_bits(predictor.raw_left_cat_bitsets))
    start = float(classifier._baseline_prediction[0, 0])  # noqa: SLF001
    return Ensemble(trees, start, sets=sets, intervals=intervals)


def convert_lightgbm(classifier: Any) -> Ensemble | None:  # noqa: ANN401
    text = classifier.booster_.model_to_string().partition("\nend of trees")[0]  # its numbers have all digits
    facts, *tables = (
        {name: value for name, _, value in (line.partition("=") for line in part.splitlines())}
        for part in text.split("\nTree=")
    )
    kind, _, scale = facts["objective"].partition(" sigmoid:")
    if kind != "binary" or "average_output" in facts or any(table["is_linear"] != "0" for table in tables):
        return None
    trees, sets = [read_lightgbm_tree(table) for table in tables], [read_lightgbm_sets(table) for table in tables]
    # A category is a number without its decimals.
    edges = np.array([-1.0, *np.nextafter(np.arange(1.0, 1 + max(found.shape[1] for found in sets)), 0)])
    columns = {column for tree in trees for column in tree["column"][tree["set"] >= 0].tolist()}
    intervals = dict.fromkeys(columns, (edges[:-1], edges[1:]))
    return Ensemble(trees, 0.0, scale=float(scale), sets=sets, intervals=intervals)


def read_lightgbm_tree(table: Mapping[str, str]) -> Array:
    """Return a tree of LightGBM's text: its inner nodes, then its leaves, whose numbers are -1, -2, ..."""
    inner, leaves = int(table["num_leaves"]) - 1, table["leaf_value"].split()
    tree = np.zeros(inner + len(leaves), NODE)
    tree["set"], tree["left"], tree["leaf"][inner:] = -1, -1, np.array(leaves, float)
    nodes, kinds = tree[:inner], np.array(table["decision_type"].split(), int)
    nodes["column"] = np.array(table["split_feature"].split(), int)
    for side in ("left", "right"):
        child = np.array(table[f"{side}_child"].split(), int)
        nodes[side] = np.where(child >= 0, child, inner - 1 - child)
    is_category, default_left, missing = kinds % 2 == 1, kinds // 2 % 2 == 1, kinds // 4
    threshold = np.array(table["threshold"].split(), float)
    nodes["set"] = np.where(is_category, threshold, -1)
    # Values near zero count as zero. So do missing ones, unless zero or NaN stands for them.
    threshold[(threshold >= 0) & (threshold < NEAR_ZERO)] = NEAR_ZERO
    threshold[(threshold < 0) & (threshold >= -NEAR_ZERO)] = np.nextafter(-NEAR_ZERO, -1)
    nodes["threshold"], nodes["zero_missing"] = threshold, (missing == ZERO) & ~is_category
    nodes["missing_left"] = np.where(missing == ABSENT, threshold >= 0, default_left) & ~is_category
    return tree


def read_lightgbm_sets(table: Mapping[str, str]) -> Array:
    words = np.array(table.get("cat_threshold", "").split(), np.uint32)
    sizes = np.diff(np.array(table.get("cat_boundaries", "0").split(), int))
    rows = np.zeros((len(sizes), sizes.max(initial=0)), np.uint32)
    rows[np.arange(rows.shape[1]) < sizes[:, np.newaxis]] = words
    return unpack_bits(rows)


def convert_xgboost(classifier: Any) -> Ensemble | None:  # noqa: ANN401
    booster, trees = classifier.get_booster(), []
    learner = json.loads(booster.save_raw("json"))["learner"]
    gradient_booster, start = learner["gradient_booster"], learner["learner_model_param"]["base_score"].strip("[]")
    is_plain = gradient_booster["name"] == "gbtree" and "best_iteration" not in booster.attributes()
    if not is_plain or learner["objective"]["name"] != "binary:logistic" or not np.isnan(classifier.missing):
        return None
    for table in gradient_booster["model"]["trees"]:
        if any(table["split_type"]):  # by category
            return None
        tree, conditions = np.zeros(len(table["left_children"]), NODE), np.array(table["split_conditions"], np.float32)
        tree["column"], tree["missing_left"] = table["split_indices"], table["default_left"]
        tree["left"], tree["right"], tree["set"] = table["left_children"], table["right_children"], -1
        tree["threshold"], tree["leaf"] = find_last_below(conditions), conditions
        trees.append(tree)
    return Ensemble(trees, np.float32(start), np.float32, limit=XGBOOST_LIMIT, is_prior=True)


def find_last_below(limits: Array) -> Array:
    """Return the largest doubles that are below limits in single precision once they are rounded to it."""
    top = 2.0**128  # rounded to infinity
    with np.errstate(over="ignore"):
        before = np.nextafter(limits, np.float32(-np.inf))
        middle = np.clip(limits, -top, top, dtype=float) / 2 + np.clip(before, -top, top, dtype=float) / 2
        is_below = middle.astype(np.float32) < limits
    last: Array = np.where(is_below, middle, np.nextafter(middle, -np.inf))
    return last


def unpack_bits(words: Array) -> Array:
    """Return the bits of rows of 32-bit words, lowest first."""
    octets = np.ascontiguousarray(words, "<u4").view(np.uint8)
    return np.unpackbits(octets, axis=1, bitorder="little").astype(bool)


# ---- scores ----


class TooLargeError(Exception):
    """The arrays have no room for these trees."""


class TreeScorer:
    """Scores rows with an ensemble; `use_bits` overrides the choice. Raises TooLargeError if it has no room for it."""

    def __init__(self, ensemble: Ensemble, *, use_bits: bool | None = None) -> None:
        from tipline.model import kernels  # noqa: PLC0415 (imports numba)

        self.kernels, self.dtype, self.scale = kernels, np.dtype(ensemble.dtype), ensemble.scale
        self.limit = self.dtype.type(ensemble.limit)
        self.start = kernels.compute_log_odds(ensemble.start) if ensemble.is_prior else ensemble.start
        self._join_trees(ensemble)
        self._measure_trees()
        inner = self.reached[self.nodes["left"][self.reached] >= 0]
        # Columns that no tree reads are left out; one stays where all are.
        self.columns = np.unique(self.nodes["column"][inner]).tolist() or [0]
        self.inner = [inner[self.nodes["column"][inner] == column] for column in self.columns]
        self.intervals = [ensemble.intervals.get(column) for column in self.columns]
        self.thresholds = list(map(self._list_thresholds, self.inner, self.intervals))
        self.padded = list(map(pad_thresholds, self.thresholds))
        # A value of each code: none, each threshold, more than all.
        self.values = [np.array([np.nan, *thresholds, np.inf]) for thresholds in self.thresholds]
        if len(self.columns) > MAX_COLUMNS or max(map(len, self.values)) > MAX_CODES:
            raise TooLargeError
        is_faster = self._is_faster_by_bits() if use_bits is None else use_bits
        self.add_leaves = self._prepare_bits() if is_faster else self._prepare_steps()

    def score_columns(self, columns: Sequence[Column], rows: int) -> Floats:
        """Return the probability of each row, from functions that write the values of all columns."""
        result, buffer = np.empty(rows), np.empty(min(rows, CHUNK_ROWS))
        codes = np.zeros((-(-len(buffer) // BLOCK_ROWS), len(self.columns), BLOCK_ROWS), np.uint16)
        for start in range(0, rows, CHUNK_ROWS):
            part = slice(start, min(start + CHUNK_ROWS, rows))
            values = buffer[: part.stop - start]
            blocks = codes[: -(-len(values) // BLOCK_ROWS)]
            for index, column in enumerate(self.columns):
                columns[column](part, values)
                self.kernels.code_values(values, self.padded[index], blocks, index)
            sums = np.full((len(blocks), BLOCK_ROWS), self.start, self.dtype)
            self.add_leaves(blocks, sums)
            self.kernels.apply_link(sums, self.dtype.type(1), self.dtype.type(self.scale), self.limit)
            result[part] = sums.ravel()[: len(values)]
        return result

    def _join_trees(self, ensemble: Ensemble) -> None:
        sizes = np.array(list(map(len, ensemble.trees)))
        self.nodes, self.roots = np.concatenate(ensemble.trees), np.cumsum(sizes) - sizes
        self.tree, self.sets = np.repeat(np.arange(len(sizes)), sizes), np.zeros((0, 0), bool)
        is_inner, base = self.nodes["left"] >= 0, np.repeat(self.roots, sizes)
        for side in ("left", "right"):
            self.nodes[side][is_inner] += base[is_inner].astype(np.int32)
        if ensemble.intervals:
            width = max(found.shape[1] for found in ensemble.sets)
            counts = np.array(list(map(len, ensemble.sets)))
            self.sets = np.concatenate([np.pad(s, ((0, 0), (0, width - s.shape[1]))) for s in ensemble.sets])
            is_set = self.nodes["set"] >= 0
            self.nodes["set"][is_set] += np.repeat(np.cumsum(counts) - counts, sizes)[is_set].astype(np.int32)

    def _measure_trees(self) -> None:
        """Find the nodes that can be reached, by steps from the root; count leaves below and to the left of each."""
        left, right = self.nodes["left"], self.nodes["right"]
        self.depths, levels = np.zeros(len(self.roots), int), [self.roots]
        while len(inner := levels[-1][left[levels[-1]] >= 0]):
            self.depths[self.tree[inner]] = len(levels)
            levels.append(np.stack([left[inner], right[inner]], axis=1).ravel())  # siblings side by side
        self.reached = np.concatenate(levels)
        self.below, self.before = (left < 0).astype(int), np.zeros(len(left), int)
        inner_levels = [level[left[level] >= 0] for level in levels]
        for inner in reversed(inner_levels):
            self.below[inner] = self.below[left[inner]] + self.below[right[inner]]
        for inner in inner_levels:
            self.before[left[inner]] = self.before[inner]
            self.before[right[inner]] = self.before[inner] + self.below[left[inner]]

    def _list_thresholds(self, inner: Array, interval: Interval | None) -> Array:
        """Return all values between which some of the nodes, all of one column, decide differently."""
        parts = [self.nodes["threshold"][inner[self.nodes["set"][inner] < 0]], *(interval or ())]
        if self.nodes["zero_missing"][inner].any():
            parts.append(np.array([np.nextafter(-NEAR_ZERO, -1), NEAR_ZERO]))
        return np.unique(np.concatenate(parts))

    def _find_left(self, inner: Array, values: Array, interval: Interval | None) -> Array:
        """Return whether nodes of one column send values to the left, shape (nodes, values)."""
        nodes = self.nodes[inner, np.newaxis]
        missing = np.isnan(values) | (nodes["zero_missing"] & (np.abs(values) <= NEAR_ZERO))
        is_left = values <= nodes["threshold"]
        if interval is not None:
            low, high = interval
            place = np.minimum(np.searchsorted(high, values), len(high) - 1)
            is_left = np.where(nodes["set"] >= 0, self.sets[nodes["set"], place], is_left)
            missing |= (nodes["set"] >= 0) & ((values <= low[place]) | (values > high[place]))
        return np.where(missing, nodes["missing_left"], is_left)

    def _is_faster_by_bits(self) -> bool:
        leaves = self.below[self.roots].max()
        row_bytes = len(self.roots) * len(self.columns) * (SMALL_WORD if leaves <= SMALL_WORD else WORD) // 8
        if leaves > WORD or row_bytes * max(map(len, self.values)) > MAX_TABLE_BYTES:
            return False
        steps_ns = self.depths.sum() * (SET_STEP_NS if len(self.sets) else STEP_NS)
        return bool(BYTE_NS * row_bytes + TREE_NS * len(self.roots) < steps_ns)

    def _prepare_bits(self) -> AddLeaves:
        trees, bits = len(self.roots), SMALL_WORD if self.below[self.roots].max() <= SMALL_WORD else WORD
        dtype, offsets = np.dtype(f"u{bits // 8}"), np.cumsum([0, *map(len, self.values)])
        codes = offsets[-1]
        size = min(trees, max(16, GROUP_BYTES // (codes * dtype.itemsize)))  # of a group
        allowed = np.full((-(-trees // size) * size, codes), np.iinfo(dtype).max, dtype)
        one, everything = dtype.type(1), np.iinfo(dtype).max
        for offset, inner, values, interval in zip(offsets, self.inner, self.values, self.intervals, strict=False):
            first, count = self.before[inner].astype(dtype), self.below[self.nodes["left"][inner]].astype(dtype)
            not_left = ~(((one << count) - one) << first)
            masks = np.where(self._find_left(inner, values, interval), everything, not_left[:, np.newaxis])
            for tree, mask in zip(self.tree[inner], masks, strict=True):
                allowed[tree, offset : offset + len(values)] &= mask
        tables = np.ascontiguousarray(allowed.reshape(-1, size, codes).transpose(0, 2, 1))
        leaves, found = np.zeros((trees, bits), self.dtype), self.reached[self.nodes["left"][self.reached] < 0]
        leaves[self.tree[found], self.before[found]] = self.nodes["leaf"][found]
        return lambda codes, sums: self.kernels.sum_by_bits(codes, offsets, tables, leaves, sums)

    def _prepare_steps(self) -> AddLeaves:
        order = self.reached[np.argsort(self.tree[self.reached], kind="stable")]
        place = np.zeros(len(self.nodes), np.int32)
        place[order] = np.arange(len(order))
        children = np.where(self.nodes["left"] < 0, place, place[self.nodes["left"]])[order]
        width = max(map(len, self.values)) if len(self.sets) or self.nodes["zero_missing"].any() else 1
        packed, sets = np.full(len(self.nodes), 0xFFFF, np.uint32), [np.zeros((1, width), bool)]
        for column, (inner, thresholds) in enumerate(zip(self.inner, self.thresholds, strict=True)):
            nodes = self.nodes[inner]
            limit = np.searchsorted(thresholds, nodes["threshold"]) + nodes["missing_left"]
            is_set = (nodes["set"] >= 0) | nodes["zero_missing"]
            if is_set.any():
                is_left = self._find_left(inner[is_set], self.values[column], self.intervals[column])
                different, which = np.unique(is_left, axis=0, return_inverse=True)
                limit[is_set] = which + sum(map(len, sets))
                sets.append(np.pad(~different, ((0, 0), (0, width - different.shape[1]))))
            packed[inner] = limit | (~nodes["missing_left"] << 16) | (column << 17) | (is_set << 31)
        if sum(map(len, sets)) > MAX_SETS:
            raise TooLargeError
        arrays = packed[order], children, self.nodes["leaf"][order].astype(self.dtype), np.concatenate(sets)
        return lambda codes, sums: self.kernels.sum_by_steps(codes, place[self.roots], self.depths, *arrays, sums)


def pad_thresholds(thresholds: Array) -> Array:
    """Return sorted thresholds with infinities up to a length of 2**k - 1, for a binary search without remainders."""
    size = max(1, 2 ** len(thresholds).bit_length() - 1)
    return np.pad(thresholds, (0, size - len(thresholds)), constant_values=np.inf)
