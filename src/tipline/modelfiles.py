"""A model as files: their names, the digest that names it, and how it is loaded.

Apart from `model`, because most of the pipeline needs no more than this, and scikit-learn takes seconds to import.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

from tipline import pyfunc
from tipline.errors import TiplineError
from tipline.files import digest_of, sha256_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CODE = "pyfunc.py"
# What makes a model: estimator, features and baseline, and the code that computes the features.
FILES = (pyfunc.ESTIMATOR, pyfunc.SPEC, CODE)
# Told of the training, beside the model; not part of its digest.
TRAINING = "training.json"


def read(folder: Path) -> dict[str, bytes]:
    """The bytes of the model's files, by name.

    Raises
    ------
    TiplineError
        Where one is missing.
    """
    try:
        return {name: (folder / name).read_bytes() for name in FILES}
    except FileNotFoundError as error:
        raise TiplineError("A file of the model is missing.", str(error.filename), "Run: dvc repro") from error


def digest(files: Mapping[str, bytes]) -> str:
    """The digest that names a model, from the bytes of its files."""
    return digest_of({name: sha256_of(files[name]) for name in FILES})


def digest_in(folder: Path) -> str:
    """The digest of the model in a folder.

    Raises
    ------
    TiplineError
        Where one of its files is missing.
    """
    return digest(read(folder))


def check(files: Mapping[str, bytes], expected: str) -> None:
    """Hold the model's files against the digest that they were registered with.

    Raises
    ------
    TiplineError
        Where they differ.
    """
    if digest(files) != expected:
        what = "The model's files are not those that were registered: their digest differs."
        raise TiplineError(what, f"digest {expected[:12]}", "Run: dvc repro register")


def load(files: Mapping[str, bytes], expected: str) -> pyfunc.Model:
    """The model, run by the code that it carries.

    Raises
    ------
    TiplineError
        Where the files are not those that `expected` is the digest of; nothing of them has run then.
    """
    check(files, expected)
    module = ModuleType(f"tipline_model_{expected[:12]}")
    # dataclasses look their module up by name
    sys.modules[module.__name__] = module
    exec(compile(files[CODE], f"{expected[:12]}/{CODE}", "exec"), module.__dict__)  # noqa: S102 (digest checked above)
    loaded: pyfunc.Model = module.Model(files)
    return loaded
