"""Data of the built-in studies that is no images: words of five languages, and a table.

As in `zoo/datasets.py`: a mapping of split name to (inputs, targets), and nothing is fetched.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autocompress.errors import UsageError

Pairs = dict[str, tuple[Tensor, Tensor]]
DEBIAN_WORDS = Path("/usr/share/dict")
# Language -> its list, in Debian's packages wamerican, wfrench, wngerman, witalian and wspanish.
WORD_LISTS = {
    "english": "american-english", "french": "french", "german": "ngerman", "italian": "italian", "spanish": "spanish",
}  # fmt: skip
ALPHABET = "abcdefghijklmnopqrstuvwxyzàáâäæçèéêëìíîïñòóôöœùúûüÿß'-"
LETTERS = 16  # of the longest word; shorter ones stand at the end, behind zeros
_WORDS_EACH = 12_000
_SHARES = {"test": 0.1, "val": 0.1}


def languages(*, words: int = _WORDS_EACH) -> Pairs:
    """Words and their languages: inputs [n, 16] of letter indices, 5 classes, as many of each.

    Words of 4 to 16 letters that stand in one list only, in small letters; the same ones at every call. Looks for the
    lists in AUTOCOMPRESS_DATA and where Debian puts them.

    Args:
        words: of each language, at most; of that a tenth each for validation and test.
    Raises:
        UsageError: a list is nowhere.
    """
    lists = [_read_words(_find_list(language, file)) for language, file in WORD_LISTS.items()]
    total = np.unique(np.concatenate(lists), return_counts=True)
    shared = set(total[0][total[1] > 1].tolist())
    generator = np.random.default_rng(0)
    own = [np.array([w for w in found if w not in shared]) for found in lists]
    count = min(words, *(len(found) for found in own))
    chosen = [generator.permutation(found)[:count] for found in own]
    inputs = torch.from_numpy(encode_words(np.concatenate(chosen).tolist()))
    targets = torch.arange(len(chosen)).repeat_interleave(count)
    return _parts(inputs, targets, generator)


def diabetes() -> Pairs:
    """scikit-learn's diabetes table: 442 patients, inputs [n, 10], how far the disease went after a year [n, 1].

    Both are standardised with fixed constants, so an error of 1 is that of the mean. The split is always the same.
    """
    from sklearn.datasets import load_diabetes

    features, progress = load_diabetes(return_X_y=True)
    inputs = torch.from_numpy((features * len(features) ** 0.5).astype(np.float32))  # columns come with a norm of 1
    targets = torch.from_numpy(((progress - 152.13) / 77.0).astype(np.float32))[:, None]
    shares = {"test": 0.2, "val": 0.2}
    return _parts(inputs, targets, np.random.default_rng(0), shares)


def encode_words(words: list[str]) -> np.ndarray:
    """Letter indices [words, 16], from the end; 0 is no letter, 1 one that is not in `ALPHABET`."""
    index = {letter: i for i, letter in enumerate(ALPHABET, start=2)}
    rows = np.zeros((len(words), LETTERS), np.int64)
    for row, word in zip(rows, words, strict=True):
        letters = [index.get(letter, 1) for letter in word[-LETTERS:]]
        row[LETTERS - len(letters) :] = letters
    return rows


def _parts(
    inputs: Tensor, targets: Tensor, generator: np.random.Generator, shares: dict[str, float] | None = None
) -> Pairs:
    order, parts = torch.from_numpy(generator.permutation(len(targets))), {}
    for name, share in (shares or _SHARES).items():
        count = round(share * len(targets))
        parts[name], order = order[:count], order[count:]
    return {name: (inputs[index], targets[index]) for name, index in {"train": order, **parts}.items()}


def _find_list(language: str, file: str) -> Path:
    folders = [DEBIAN_WORDS]
    if own := os.environ.get("AUTOCOMPRESS_DATA"):
        folders = [Path(own), Path(own) / "dict", *folders]
    found = next((folder / file for folder in folders if (folder / file).is_file()), None)
    if found is None:
        raise UsageError(
            f"the list of {language} words was not found; `apt install wamerican wfrench wngerman witalian wspanish`, "
            f"or set AUTOCOMPRESS_DATA to a folder with {', '.join(WORD_LISTS.values())}, one word a line"
        )
    return found


def _read_words(path: Path) -> np.ndarray:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:  # as these packages were before 2010
        text = content.decode("latin-1")
    words = {word.lower() for word in text.split() if 4 <= len(word) <= LETTERS and not word.endswith("'s")}
    if not words:
        raise UsageError(f"{path} holds no words of 4 to {LETTERS} letters; get the list again")
    return np.array(sorted(words))
