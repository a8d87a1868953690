"""The recovery loss: worked values, its special cases, and why it is scaled by the temperature squared."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from autocompress.plan import CompressionPlan
from autocompress.recover.distill import distill_loss, label_distill_loss, recovery_loss

STUDENT = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
TEACHER = torch.tensor([[math.log(3.0), 0.0], [2.0, 0.0]])


def random_pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 5, generator=generator), torch.randn(6, 5, generator=generator)


def test_a_worked_example():
    # Teacher (3/4, 1/4) against student (1/2, 1/2): 3/4 ln 3/2 + 1/4 ln 1/2; the second row agrees and adds nothing.
    row = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(distill_loss(STUDENT, TEACHER, temperature=1.0)) == pytest.approx(row / 2, abs=1e-6)


def test_at_temperature_one_it_is_the_divergence_of_the_two_distributions():
    student, teacher = random_pair()
    p, q = teacher.softmax(1), student.softmax(1)
    expected = (p * (p / q).log()).sum(1).mean()
    assert float(distill_loss(student, teacher, temperature=1.0)) == pytest.approx(float(expected), rel=1e-5)


def test_equal_logits_cost_nothing_and_a_constant_per_row_changes_nothing():
    student, teacher = random_pair()
    assert float(distill_loss(student, student, temperature=4.0)) == pytest.approx(0.0, abs=1e-6)
    shifted = distill_loss(student + 3.0, teacher - 1.0, temperature=4.0)
    assert float(shifted) == pytest.approx(float(distill_loss(student, teacher, temperature=4.0)), rel=1e-4)


def test_scaled_logits_at_a_scaled_temperature_cost_the_square_of_the_scale():
    student, teacher = random_pair()
    hot = distill_loss(5 * student, 5 * teacher, temperature=5.0)
    assert float(hot) == pytest.approx(25 * float(distill_loss(student, teacher, temperature=1.0)), rel=1e-5)


def test_for_high_temperatures_it_becomes_half_the_squared_error_of_centred_logits_per_class():
    student, teacher = random_pair()
    centred = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    expected = centred.pow(2).sum(1).mean() / (2 * student.shape[1])
    got = distill_loss(student.double(), teacher.double(), temperature=1000.0)
    assert float(got) == pytest.approx(float(expected), rel=1e-2)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be above 0"):
        distill_loss(STUDENT, TEACHER, temperature=temperature)


def test_outputs_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"student \(2, 2\) and teacher \(1, 2\) differ"):
        distill_loss(STUDENT, TEACHER[:1], temperature=1.0)


def test_the_weight_mixes_soft_and_hard_targets():
    student, teacher = random_pair()
    targets = torch.tensor([0, 1, 2, 3, 4, 0])
    hard = functional.cross_entropy(student, targets)
    soft = distill_loss(student, teacher, temperature=2.0)

    def loss(weight: float, soft_targets: torch.Tensor | None = teacher) -> float:
        return float(recovery_loss(student, targets, soft_targets, temperature=2.0, weight=weight))

    assert loss(0.0) == pytest.approx(float(hard))
    assert loss(1.0) == pytest.approx(float(soft))
    assert loss(0.9) == pytest.approx(float(0.9 * soft + 0.1 * hard))
    assert loss(0.9, None) == pytest.approx(float(hard)), "without a teacher the labels count in full"


def test_regression_has_squared_errors_to_the_targets_and_to_the_teacher():
    outputs, targets, teacher = torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 4.0]), torch.tensor([[1.0], [3.0]])
    loss = recovery_loss(outputs, targets, teacher, temperature=4.0, weight=0.5)
    assert float(loss) == pytest.approx(0.5 * 0.5 + 0.5 * 2.5)
    alone = recovery_loss(outputs, targets, None, temperature=4.0, weight=0.5)
    assert float(alone) == pytest.approx(2.5)


def test_several_labels_have_binary_cross_entropies_to_the_targets_and_to_the_teacher():
    outputs, teacher = torch.tensor([[0.0, 2.0]]), torch.tensor([[math.log(3.0), 2.0]])
    targets = torch.tensor([[True, False]])
    hard = (math.log(2.0) + math.log(1 + math.exp(2.0))) / 2
    # Teacher 3/4 against student 1/2; on the second label they agree.
    soft = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert float(label_distill_loss(outputs, teacher, temperature=1.0)) == pytest.approx(soft, abs=1e-6)
    for weight, expected in ((0.0, hard), (1.0, soft), (0.25, 0.25 * soft + 0.75 * hard)):
        loss = recovery_loss(outputs, targets, teacher, temperature=1.0, weight=weight)
        assert float(loss) == pytest.approx(expected, abs=1e-6)
    warm = float(label_distill_loss(outputs, teacher, temperature=2.0))
    p, q = 1 / (1 + 3**-0.5), 0.5
    assert warm == pytest.approx(4 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))) / 2, abs=1e-6)


def test_an_unknown_key_of_a_distillation_is_refused():
    with pytest.raises(ValueError, match="unknown key 'temprature' in distill; known are"):
        CompressionPlan.from_dict({"distill": {"temprature": 2.0}})
