"""Words and tables: what is made of them, and what is said where they are missing."""

from __future__ import annotations

import pytest
import torch

from autocompress.errors import UsageError
from autocompress.zoo import tables
from autocompress.zoo.tables import ALPHABET, WORD_LISTS, diabetes, encode_words, languages


@pytest.fixture
def lists(tmp_path, monkeypatch):
    """Five small lists; "common" stands in all of them, and is no use."""
    for number, file in enumerate(WORD_LISTS.values()):
        words = [f"{letter * 4}{'xyzwv'[number]}" for letter in "abcdefghij"]
        (tmp_path / file).write_text("\n".join(["common", "abc", "Ab's", *words]), encoding="utf-8")
    monkeypatch.setenv("AUTOCOMPRESS_DATA", str(tmp_path))
    return tmp_path


def test_words_are_indices_of_letters_from_the_end():
    rows = encode_words(["ab", "é?"])
    assert rows.shape == (2, 16)
    assert rows[0].tolist() == [0] * 14 + [2, 3]
    assert rows[1].tolist() == [0] * 14 + [2 + ALPHABET.index("é"), 1]
    assert rows.max() < 64


def test_each_language_gives_as_many_words_and_none_that_another_has(lists):
    data = languages()
    assert {name: len(targets) for name, (_, targets) in data.items()} == {"train": 40, "val": 5, "test": 5}
    inputs, targets = (torch.cat([data[s][i] for s in ("train", "val", "test")]) for i in (0, 1))
    assert torch.bincount(targets).tolist() == [10] * 5
    last = inputs[targets == 2][:, -1]
    assert (last == 2 + ALPHABET.index("z")).all()
    assert len({tuple(row) for row in inputs.tolist()}) == 50
    again = languages()
    assert torch.equal(data["train"][0], again["train"][0])


def test_old_lists_are_read_too(lists):
    (lists / "french").write_bytes("\n".join(f"\xe9t\xe9{c}" for c in "abcdefghij").encode("latin-1"))
    inputs, targets = languages()["train"]
    assert (inputs[targets == 1][:, -4] == 2 + ALPHABET.index("é")).all()


def test_a_missing_list_says_how_to_get_it(lists, tmp_path, monkeypatch):
    (lists / "spanish").unlink()
    monkeypatch.setattr(tables, "DEBIAN_WORDS", tmp_path / "nowhere")
    with pytest.raises(UsageError, match="spanish words was not found; `apt install wamerican wfrench wngerman"):
        languages()


def test_the_table_is_standardised_and_split_once_for_all():
    data = diabetes()
    assert {name: tuple(x.shape) for name, (x, _) in data.items()} == {
        "train": (266, 10), "val": (88, 10), "test": (88, 10),
    }  # fmt: skip
    targets = torch.cat([t for _, t in data.values()])
    assert targets.shape == (442, 1)
    assert float(targets.mean()) == pytest.approx(0.0, abs=0.01)
    assert float(targets.square().mean()) == pytest.approx(1.0, abs=0.01)
    inputs = torch.cat([x for x, _ in data.values()])
    assert inputs.square().mean(0).tolist() == pytest.approx([1.0] * 10, abs=1e-4)
