"""The training loop: what a seed decides, when rounding sets in, what the teacher costs, and how it ends."""

from __future__ import annotations

import copy
import math
from contextlib import contextmanager

import pytest
import torch
from tiny import TinyNet, make_tiny_data
from tiny_study import trained_model
from torch import Tensor, nn

from autocompress.compress.quantize import FakeQuantize, limit_for, quantize_weights_, settle_weights_
from autocompress.plan import DistillPlan
from autocompress.recover import finetune
from autocompress.recover import outputs as teaching
from autocompress.recover import trainer as running
from autocompress.recover.data import Split
from autocompress.recover.finetune import TrainingReport, _Clock, _schedule, _thin, finetune_
from autocompress.recover.outputs import TeacherOutputs
from autocompress.recover.trainer import Trainer, evaluate_in_torch, prefers_bf16

CPU = torch.device("cpu")
TRAINER = Trainer(device=CPU, bf16=False, batch_size=32)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def train() -> Split:
    inputs, targets = make_tiny_data()["train"]
    return Split(inputs=(inputs,), targets=targets)


class Counted(nn.Module):
    """A teacher that remembers how many samples it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.samples = trained_model(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.samples += len(x)
        out: Tensor = self.inner(x)
        return out


def outputs_of(teacher: nn.Module | None, train: Split, kind: str = "none") -> TeacherOutputs:
    return TeacherOutputs(teacher, train, kind=kind, trainer=TRAINER, seed=0)


def recover(train: Split, *, steps: int = 20, **options) -> tuple[TinyNet, TrainingReport]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = TinyNet(channels=16)
    defaults = {"seconds": math.inf, "learning_rate": 0.01, "distill": DistillPlan(), "trainer": TRAINER}
    report = finetune_(model, outputs_of(trained_model(), train), steps=steps, **{**defaults, **options})
    return model, report


def train_for(epochs: int, outputs: TeacherOutputs) -> None:
    steps = epochs * (len(outputs.train) // TRAINER.batch_size)
    finetune_(
        TinyNet(channels=16), outputs, trainer=TRAINER, seconds=math.inf, steps=steps, learning_rate=0.01,
        distill=DistillPlan(),
    )  # fmt: skip


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_steps_and_a_seed_decide_everything(train):
    (one, first), (two, second), (other, _) = (recover(train, seed=s) for s in (3, 3, 4))
    assert first.steps == second.steps == 20
    assert [loss for _, loss in first.curve] == [loss for _, loss in second.curve]
    assert same(one, two)
    assert not same(one, other)


def test_training_learns_and_leaves_the_network_in_eval_mode(train):
    model, report = recover(train, steps=60)
    assert report.finite
    assert report.curve[-1][1] < report.curve[0][1] / 2
    assert not model.training
    accuracy = (evaluate_in_torch(model, train, TRAINER).argmax(1) == train.targets).float().mean()
    assert accuracy > 0.8


@pytest.mark.parametrize("channels", [1, 3])
def test_images_reach_every_convolution_in_the_faster_format_also_with_rounded_weights(channels):
    model = quantize_weights_(nn.Sequential(nn.Conv2d(channels, 8, 3), nn.Conv2d(8, 8, 1)), {"0": 4, "1": 4})
    model.to(memory_format=torch.channels_last)
    x = torch.randn(2, channels, 6, 6)
    images = running._channels_last(x)
    assert torch.equal(images, x)
    assert model[0](images).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(running._channels_last(torch.ones(2, 3)), torch.ones(2, 3))


def test_networks_over_volumes_are_trained():
    net = nn.Sequential(nn.Conv3d(1, 2, 3), nn.Flatten(), nn.Linear(16, 2))
    few = Split(inputs=(torch.randn(8, 1, 4, 4, 4),), targets=torch.arange(8) % 2)
    before = net[0].weight.detach().clone()
    report = finetune_(
        net, outputs_of(None, few), trainer=TRAINER, seconds=math.inf, steps=2, learning_rate=0.01,
        distill=DistillPlan(),
    )  # fmt: skip
    assert (report.steps, report.finite) == (2, True)
    assert not torch.equal(net[0].weight, before)
    assert prefers_bf16(net, few.inputs, CPU) in (True, False)


def test_parameters_are_plain_tensors_after_a_training(train):
    model, _ = recover(train, steps=4)
    assert all(p.is_contiguous() for p in model.parameters())


def test_what_answers_for_the_teacher_is_asked_once_per_sample(train):
    asked: list[int] = []

    def answers(inputs):
        asked.append(len(inputs[0]))
        return inputs[0].flatten(1)[:, :4].double()

    source = outputs_of(TinyNet().eval(), train)
    source.answers = answers
    first = source.batch(torch.tensor([3, 5]))[2]
    second = source.batch(torch.tensor([5, 7, 3]))[2]
    assert asked == [2, 1]
    assert torch.equal(first, train.inputs[0][[3, 5]].flatten(1)[:, :4])
    assert torch.equal(second, train.inputs[0][[5, 7, 3]].flatten(1)[:, :4])


def test_seconds_end_a_training_too(train):
    _, report = recover(train, steps=None, seconds=0.3)
    assert report.steps >= 1
    assert 0.3 <= report.seconds < 5


def test_low_bits_are_rounded_while_training_and_eight_afterwards(train, monkeypatch):
    shares: list[float] = []
    rounded: list[tuple[int, set[str]]] = []
    real = finetune.quantize_weights_

    def spy(model, bits, levels):
        rounded.append((len(shares), {name for name, b in bits.items() if b <= 8}))
        return real(model, bits, levels)

    monkeypatch.setattr(finetune, "quantize_weights_", spy)
    bits = {"conv1": 8, "conv2": 3, "fc": 32}
    model, report = recover(train, weight_bits=bits, quantize_from=0.5, on_step=shares.append)
    assert report.steps == 20
    assert rounded == [(10, {"conv2"}), (20, {"conv1"})]
    assert [isinstance(m, FakeQuantize) for m in model.modules()].count(True) == 2
    assert not hasattr(model.fc, "parametrizations")
    assert shares == pytest.approx([n / 20 for n in range(20)])


def test_feedback_is_asked_once_where_rounding_sets_in(train, monkeypatch):
    shares: list[float] = []
    asked: list[tuple[int, bool, int]] = []
    real = finetune.round_with_feedback_

    def spy(rounded, dense, samples):
        assert not any(isinstance(m, FakeQuantize) for m in dense.modules())
        asked.append((len(shares), rounded.training or dense.training, len(samples[0])))
        return real(rounded, dense, samples)

    monkeypatch.setattr(finetune, "round_with_feedback_", spy)
    bits, few = {"conv1": 8, "fc": 3}, (train.inputs[0][:8],)
    nearest, _ = recover(train, weight_bits=bits, on_step=lambda _: None)
    assert asked == []
    fed, _ = recover(train, weight_bits=bits, feedback=few, on_step=shares.append)
    assert asked == [(10, False, 8)]
    assert not torch.equal(fed.fc.weight, nearest.fc.weight)
    recover(train, weight_bits={"conv1": 8}, feedback=few)
    assert len(asked) == 1, "8 bits are rounded to the nearest"
    single, _ = recover(train, steps=1, weight_bits=bits, feedback=few)
    assert len(asked) == 2, "the only step is over before rounding sets in"
    assert [isinstance(m, FakeQuantize) for m in single.modules()].count(True) == 2


def test_weights_settle_to_as_many_values_as_the_bits_allow(train):
    model, _ = recover(train, weight_bits={"conv1": 8, "conv2": 2, "fc": 4})
    with torch.no_grad():
        before = model(train.inputs[0][:8])
    settled = settle_weights_(model)
    for name, bits in {"conv1": 8, "conv2": 2, "fc": 4}.items():
        weight = model.get_submodule(name).weight.detach()
        integers = settled[name].integers
        assert int(integers.abs().max()) <= limit_for(bits)
        for channel, scale in zip(weight, settled[name].scale, strict=True):
            steps = channel / scale
            assert torch.allclose(steps, steps.round(), atol=1e-4)
            assert len(channel.unique()) <= 2 * limit_for(bits) + 1
    with torch.no_grad():
        assert torch.allclose(model(train.inputs[0][:8]), before, atol=1e-4), "settling changes nothing but the form"


def test_the_scales_of_rounded_weights_are_trained(train):
    model, _ = recover(train, weight_bits={"conv2": 3}, quantize_from=0.0)
    fake = model.conv2.parametrizations.weight[0]
    fresh = FakeQuantize(model.conv2.parametrizations.weight.original.detach(), 3)
    assert not torch.allclose(fake.log_scale, fresh.log_scale)


def test_the_teacher_is_asked_once_per_sample_however_many_trials_there_are(train):
    teacher = Counted()
    outputs = outputs_of(teacher, train)
    for seed in range(3):
        finetune_(
            TinyNet(channels=16), outputs, trainer=TRAINER, seconds=math.inf, steps=16, learning_rate=0.01,
            distill=DistillPlan(), seed=seed,
        )  # fmt: skip
    assert teacher.samples == len(train)


def test_a_later_study_reads_the_outputs_that_an_earlier_one_left(train, tmp_path):
    teacher, indices, path = Counted(), torch.arange(8), tmp_path / "outputs.safetensors"
    first = outputs_of(teacher, train)
    _, _, wanted = first.batch(indices)
    first.save(path)
    later = outputs_of(teacher, train)
    later.load(path)
    _, _, found = later.batch(indices)
    assert teacher.samples == 8, "asked once, by the first"
    assert wanted is not None
    assert found is not None
    assert torch.equal(found, wanted)
    later.batch(indices + 1)
    assert teacher.samples == 9, "one of these was not there"


def test_outputs_are_written_again_only_if_there_are_more(train, tmp_path):
    outputs, path = outputs_of(trained_model(), train), tmp_path / "outputs.safetensors"
    outputs.batch(torch.arange(8))
    outputs.save(path)
    path.unlink()
    outputs.save(path)
    assert not path.exists()
    outputs.batch(torch.arange(9))
    outputs.save(path)
    assert path.exists()


def test_outputs_of_other_data_are_refused(train, tmp_path):
    outputs, path = outputs_of(trained_model(), train), tmp_path / "outputs.safetensors"
    outputs.batch(torch.arange(8))
    outputs.save(path)
    fewer = Split(inputs=(train.inputs[0][:9],), targets=train.targets[:9])
    with pytest.raises(ValueError, match=r"outputs of 256 samples"):
        outputs_of(trained_model(), fewer).load(path)


def test_kept_outputs_are_those_of_the_teacher(train):
    teacher = trained_model()
    outputs = outputs_of(teacher, train)
    indices = torch.tensor([5, 200, 7])
    outputs.batch(torch.tensor([7, 8]))
    inputs, targets, soft = outputs.batch(indices)
    assert torch.equal(inputs[0], train.inputs[0][indices])
    assert torch.equal(targets, train.targets[indices])
    assert soft is not None
    with torch.no_grad():
        assert torch.allclose(soft, teacher(train.inputs[0][indices]), atol=1e-5)


def test_every_batch_holds_all_views_and_each_has_outputs_of_its_own(train):
    teacher, indices = Counted(), torch.arange(8)
    outputs, images = outputs_of(teacher, train, kind="hflip"), train.inputs[0][:8]
    assert torch.equal(outputs.batch(indices)[0][0], images)
    assert teacher.samples == 8
    for epoch in range(8):
        (inputs,), targets, soft = outputs.batch(indices, epoch)
        as_it_is = [i for i in range(8) if torch.equal(inputs[i], images[i])]
        mirrored = [i for i in range(8) if torch.equal(inputs[i], images[i].flip(2))]
        assert as_it_is == [(8 - epoch) % 8]
        assert mirrored == [(9 - epoch) % 8]
        assert torch.equal(targets, train.targets[:8])
        assert soft is not None
        with torch.no_grad():
            assert torch.allclose(soft, teacher.inner(inputs), atol=1e-5)
    assert teacher.samples == 64, "each view of a sample once"
    again, _, _ = outputs.batch(indices, 8)
    assert torch.equal(again[0], outputs.batch(indices, 0)[0][0])
    assert teacher.samples == 64


def test_what_is_known_of_views_is_kept_too(train, tmp_path):
    teacher, indices, path = Counted(), torch.arange(8), tmp_path / "outputs.safetensors"
    first = outputs_of(teacher, train, kind="hflip+shift")
    first.batch(indices)
    wanted = [first.batch(indices, epoch) for epoch in range(8)]
    assert teacher.samples == 64
    first.save(path)
    later = outputs_of(teacher, train, kind="hflip+shift")
    later.load(path)
    for epoch, ((inputs,), _, soft) in enumerate(wanted):
        (found,), _, again = later.batch(indices, epoch)
        assert torch.equal(found, inputs), "by the seed"
        assert again is not None
        assert soft is not None
        assert torch.equal(again, soft)
    assert teacher.samples == 64


@pytest.mark.parametrize(("epochs", "views"), [(19, 1), (20, 8)])
def test_a_training_of_many_epochs_sees_views_and_a_shorter_one_the_data_as_it_is(train, epochs, views):
    teacher = Counted()
    train_for(epochs, outputs_of(teacher, train))
    assert teacher.samples == views * len(train)


def test_there_are_no_views_where_what_the_teacher_says_of_them_takes_too_much_memory(train, monkeypatch):
    teacher = Counted()
    monkeypatch.setattr(teaching, "_MOST_BYTES", 8 * len(train) * 4 * 4 - 1)  # four classes
    train_for(20, outputs_of(teacher, train))
    assert teacher.samples == len(train)


def test_without_a_teacher_there_are_no_soft_targets(train):
    assert outputs_of(None, train).batch(torch.arange(4))[2] is None


def test_without_a_teacher_every_batch_is_augmented_afresh_by_the_seed(train):
    one, other = outputs_of(None, train, kind="shift"), outputs_of(None, train, kind="shift")
    first, second, third = (one.batch(torch.arange(8))[0][0] for _ in range(3))
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    assert torch.equal(other.batch(torch.arange(8))[0][0], first)


def test_the_learning_rate_rises_for_a_twentieth_and_falls_along_a_cosine():
    assert _schedule(0.0) == pytest.approx(1e-3)
    assert _schedule(0.025) == pytest.approx(0.5 + 1e-3)
    assert _schedule(0.05) == pytest.approx(1 + 1e-3)
    assert _schedule(0.525) == pytest.approx(0.5 + 1e-3)
    assert _schedule(1.0) == pytest.approx(1e-3)
    falling = [_schedule(0.05 + 0.95 * n / 50) for n in range(51)]
    assert falling == sorted(falling, reverse=True)


def test_the_share_is_that_of_the_time_or_of_the_steps_whichever_is_more(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(finetune.time, "perf_counter", lambda: now[0])
    clock = _Clock(seconds=10.0, steps=4, start=100.0)
    clock.count, now[0] = 1, 101.0
    assert clock.share() == pytest.approx(0.25)
    now[0] = 106.0
    assert clock.share() == pytest.approx(0.6)
    assert _Clock(seconds=math.inf, steps=4, count=3, start=100.0).share() == 0.75
    assert _Clock(seconds=0.0, steps=None, start=100.0).share() > 1


def test_steps_to_come_are_told_by_the_last_one(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(finetune.time, "perf_counter", lambda: now[0])
    clock, few = _Clock(seconds=10.0, steps=None, start=100.0), _Clock(seconds=10.0, steps=8, start=100.0)
    for end, expected in ((102.0, 5.0), (102.5, 20.0)):
        now[0] = end
        for one in (clock, few):
            one.tick()
        assert clock.expected_steps() == pytest.approx(expected)
        assert few.expected_steps() == pytest.approx(min(expected, 8))
    assert clock.count == 2


def test_a_step_takes_the_rate_of_its_middle_also_the_first_one(train, monkeypatch):
    asked: list[float] = []
    real = finetune._schedule

    def spy(share):
        asked.append(share)
        return real(share)

    monkeypatch.setattr(finetune, "_schedule", spy)
    recover(train, steps=4)
    assert asked == pytest.approx([1 / 8, 3 / 8, 5 / 8, 7 / 8])


def test_half_a_step_is_told_by_the_last_one_or_by_the_first_one_so_far(monkeypatch):
    now = [102.0]
    monkeypatch.setattr(finetune.time, "perf_counter", lambda: now[0])
    clock = _Clock(seconds=10.0, steps=None, start=100.0)
    assert clock.middle(0.0) == pytest.approx(0.1)
    clock.tick()
    now[0] = 103.0
    assert clock.middle(0.2) == pytest.approx(0.3)
    clock.tick()
    assert clock.middle(0.3) == pytest.approx(0.35)
    assert clock.middle(0.98) == 1.0


def test_a_network_that_agrees_with_its_teacher_moves_less_where_steps_are_few(train, monkeypatch):
    """It is the teacher, so four steps have a quarter of the rate that they would have otherwise."""

    def moved() -> float:
        network, before = trained_model(), trained_model().state_dict()
        finetune_(
            network, outputs_of(trained_model(), train), trainer=TRAINER, seconds=math.inf, steps=4,
            learning_rate=0.01, distill=DistillPlan(),
        )  # fmt: skip
        return sum(float((p.detach() - before[n]).norm()) for n, p in network.named_parameters())

    little = moved()
    monkeypatch.setattr(finetune, "rate_share", lambda damage, steps: 1.0)
    assert moved() > 2.5 * little > 0


def test_a_training_that_diverges_ends_and_says_so(train):
    _, report = recover(train, steps=200, learning_rate=1e9)
    assert not report.finite
    assert report.steps < 200


@pytest.mark.parametrize("step", [4, 10], ids=["before rounding sets in", "in the last step"])
def test_weights_that_became_infinite_are_a_divergence_whatever_the_last_loss_was(train, step):
    model, shares = TinyNet(channels=16), []

    def spoil(share: float) -> None:
        shares.append(share)
        if len(shares) == step:
            model.fc.bias.data[0] = math.inf

    report = finetune_(
        model, outputs_of(trained_model(), train), trainer=TRAINER, seconds=math.inf, steps=10, learning_rate=0.01,
        distill=DistillPlan(), weight_bits={"conv1": 8, "conv2": 3}, on_step=spoil,
    )  # fmt: skip
    assert not report.finite
    assert report.steps <= 10


def test_what_on_step_raises_ends_the_training(train):
    def stop(share: float) -> None:
        if share >= 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recover(train, on_step=stop)


def test_the_guard_is_given_back_about_every_second(train, monkeypatch):
    now, held, turns = [0.0], [False], [0]

    def clock() -> float:
        now[0] += 0.05 if held[0] else 0.0
        return now[0]

    @contextmanager
    def guard():
        assert not held[0]
        held[0], turns[0] = True, turns[0] + 1
        yield
        held[0] = False

    monkeypatch.setattr(finetune.time, "perf_counter", clock)
    recover(train, steps=64, trainer=Trainer(device=CPU, bf16=False, batch_size=32, guard=guard))
    assert turns[0] >= now[0] / 1.5
    assert turns[0] < 64
    assert not held[0]


def test_a_batch_larger_than_the_data_is_all_of_it(train):
    few = Split(inputs=(train.inputs[0][:10],), targets=train.targets[:10])
    model = TinyNet(channels=16)
    report = finetune_(
        model, outputs_of(None, few), trainer=TRAINER, seconds=math.inf, steps=3, learning_rate=0.01,
        distill=DistillPlan(),
    )  # fmt: skip
    assert report.steps == 3


def test_the_curve_is_thinned_evenly_and_keeps_its_start():
    curve = [(float(n), 1.0 / (n + 1)) for n in range(1000)]
    thin = _thin(curve)
    assert 60 <= len(thin) <= 64
    assert thin[0] == (0.0, 1.0)
    assert [s for s, _ in thin] == [float(16 * n) for n in range(len(thin))]
    assert _thin(curve[:5]) == tuple((s, round(loss, 5)) for s, loss in curve[:5])


def test_finding_the_faster_precision_leaves_the_network_as_it_was():
    model = trained_model().eval()
    before = copy.deepcopy(model)
    assert prefers_bf16(model, [torch.zeros(4, 1, 8, 8)], CPU) in (True, False)
    assert same(model, before)
    assert all(p.grad is None for p in model.parameters())


def test_a_network_that_fails_in_bfloat16_is_trained_in_float():
    class Strict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(x)
            if out.dtype == torch.bfloat16:
                raise RuntimeError("not implemented for 'BFloat16'")
            return out

    assert not prefers_bf16(Strict(), [torch.zeros(64, 4)], CPU)


@pytest.mark.parametrize(
    ("in_float", "in_bf16", "asked", "preferred"),
    [
        ({16: 1.0, 64: 4.0}, {16: 1.1, 64: 3.0}, [16, 16, 64, 64], True),
        ({16: 1.0, 64: 4.0}, {16: 0.8, 64: 4.1}, [16, 16, 64, 64], False),
        ({16: 1.0}, {16: 9.0}, [16, 16], False),  # hopeless
        ({16: 9.0}, {16: 2.0}, [16, 16], True),  # a whole batch would take too long
    ],
)
def test_two_precisions_are_compared_on_a_whole_batch_only_where_that_is_quick(
    in_float, in_bf16, asked, preferred, monkeypatch
):
    sizes: list[int] = []

    def seconds(_model: nn.Module, inputs: tuple[Tensor, ...], trainer: Trainer) -> float:
        sizes.append(len(inputs[0]))
        return (in_bf16 if trainer.bf16 else in_float)[len(inputs[0])]

    monkeypatch.setattr(running, "_step_seconds", seconds)
    monkeypatch.setattr(running, "_SLOW_S", 20.0)
    assert prefers_bf16(nn.Linear(4, 2), [torch.zeros(64, 4)], CPU) is preferred
    assert sizes == asked
