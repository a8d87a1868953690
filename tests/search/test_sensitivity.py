"""From a few measured damages to a table over all options."""

from __future__ import annotations

import numpy as np
import pytest

from autocompress.search.sensitivity import Sensitivity


def test_between_measured_widths_the_damage_is_interpolated_and_beyond_them_a_power_law(chain_options):
    found = Sensitivity(width={"a": {"16": 0.16, "8": 0.81}}).tables(chain_options)["width"]
    assert found[0] == pytest.approx([0.0, 0.16 * 0.5**4, 0.16, 0.81])  # of 32 channels, 8 in each step


def test_a_group_that_was_measured_at_its_own_width_alone_gets_a_guess(chain_options):
    found = Sensitivity(width={"a": {"32": 0.0}}).tables(chain_options)["width"]
    assert found.tolist() == Sensitivity().tables(chain_options)["width"].tolist()


def test_a_group_that_was_not_measured_gets_a_guess_that_grows(chain_options):
    found = Sensitivity().tables(chain_options)["width"]
    assert (np.diff(found[0]) > 0).all()
    assert found[0][0] == 0


def test_rounding_noise_quadruples_with_each_bit_taken(chain_options):
    found = Sensitivity(bits={"b": {"2": 0.64}}).tables(chain_options)["bits"]
    assert found[1] == pytest.approx([0.64 / 4**6, 0.04, 0.64])  # 8, 4 and 2 bits


def test_it_survives_json():
    found = Sensitivity(width={"a": {"8": 0.5}}, bits={"b": {"2": 0.1}}, seconds=1.5, samples=256)
    assert Sensitivity.from_dict(found.to_dict()) == found


def test_ranks_go_through_what_was_measured_and_whole_layers_lose_nothing(factored_options):
    table = Sensitivity(ranks={"outer": {"0.5": 0.2}}).tables(factored_options)["rank"]
    assert table[0].tolist() == [0.0, 0.0, 0.0], "the stem cannot be factored"
    assert table[1].tolist() == pytest.approx([0.0, 0.05, 0.075]), "a guess, in proportion to what is saved"
    assert table[2].tolist() == pytest.approx([0.0, 0.2, 0.3])
