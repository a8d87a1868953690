"""Takes networks of many families through a whole search, and writes down what became of each.

    python docs/architectures.py                              # all of them, about half an hour
    python docs/architectures.py --only mlp,row_lstm --out -  # some, to the terminal

Every network is trained for a few steps on scikit-learn's digits, searched with the same few short trials, and its
files are compared with torch. What cannot be done is a row with its reason. The table is `docs/architectures.md`.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import autocompress
from autocompress.api import study_names
from autocompress.errors import AutocompressError
from autocompress.measure.machine import cores, processor
from autocompress.records import StudyRecord, StudyState, TrialRecord, TrialState
from autocompress.study.run import resume_study
from autocompress.zoo.datasets import digits
from autocompress.zoo.models import resnet20
from autocompress.zoo.sequences import SmallViT, TableMLP, WordGRU

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the worker cannot import this script
Data = dict[str, tuple[Any, Tensor]]
CLASSES, MAX_DROP = 10, 0.02
_STEPS, _BATCH = 150, 64
TRIALS, TRAIN_S = 9, 2.0
_BUDGET = "40m"  # far more than that takes: a budget in seconds would make the table depend on what else is running


# Forms of the same data ----------------------------------------------------------------------------


def _formed(form: Callable[[Tensor], Any]) -> Data:
    return {name: (form(images), labels) for name, (images, labels) in digits().items()}


def small_images() -> Data:
    """[n, 1, 8, 8]."""
    return _formed(lambda x: x)


def large_images() -> Data:
    """[n, 3, 32, 32], each pixel 4x4."""
    return _formed(lambda x: x.expand(-1, 3, -1, -1).repeat_interleave(4, 2).repeat_interleave(4, 3).contiguous())


def rows() -> Data:
    """[n, 8, 8], a step for each row."""
    return _formed(lambda x: x.squeeze(1))


def tokens() -> Data:
    """[n, 32] of indices below 64: two neighbouring pixels of eight levels each."""

    def form(x: Tensor) -> Tensor:
        levels = ((x.flatten(1) - x.amin()) / (x.amax() - x.amin()) * 7.99).long()
        return levels[:, ::2] * 8 + levels[:, 1::2]

    return _formed(form)


def flat() -> Data:
    """[n, 64]."""
    return _formed(lambda x: x.flatten(1))


def image_and_sums() -> Data:
    """Images, and the sums of their rows and columns as a second input [n, 16]."""
    return _formed(lambda x: (x, torch.cat([x.sum(2), x.sum(3)], -1).squeeze(1)))


# Networks that are written here ----------------------------------------------------------------------


class Attention(nn.Module):
    """One projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.num_heads = heads

    def forward(self, x: Tensor) -> Tensor:
        n, steps, width = x.shape
        q, k, v = self.qkv(x).view(n, steps, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, steps, width))
        return out


class CausalAttention(nn.Module):
    """Three projections, and no place sees later ones."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.n_head = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            p(x).unflatten(-1, (self.n_head, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        scores = scores + torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1)
        out: Tensor = self.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Norm, attention, norm, inner network."""

    def __init__(self, attention: nn.Module, width: int) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), attention, nn.LayerNorm(width)
        self.inner = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.inner(self.norm2(x))
        return out


class TokenTransformer(nn.Module):
    """Embedding, places, layers, mean; `layers` maps [n, 32, 64] to the same shape."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(64, 64), nn.Parameter(torch.randn(1, 32, 64) * 0.02)
        self.layers, self.fc = layers, nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.layers(self.embed(x) + self.places).mean(1))
        return out


class RowRecurrent(nn.Module):
    """A recurrent layer over the rows, and the mean or the last of its steps."""

    def __init__(self, kind: type[nn.RNNBase], *, layers: int = 1, both: bool = False, mean: bool = False) -> None:
        super().__init__()
        self.rnn = kind(8, 64, layers, batch_first=True, bidirectional=both)  # type: ignore[arg-type]
        self.fc, self.mean = nn.Linear(128 if both else 64, CLASSES), mean

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.rnn(x)
        out: Tensor = self.fc(steps.mean(1) if self.mean else steps[:, -1])
        return out


class ConvLSTM(nn.Module):
    """Convolutions, then an LSTM over what they make of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.rnn, self.fc = nn.LSTM(32 * 8, 64, batch_first=True), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.rnn(self.conv(x).permute(0, 2, 1, 3).flatten(2))
        out: Tensor = self.fc(steps[:, -1])
        return out


class Grouped(nn.Module):
    """Grouped 3x3 convolutions between 1x1 ones, as in ResNeXt."""

    def __init__(self) -> None:
        super().__init__()

        def unit(width: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
                nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width),
            )  # fmt: skip

        self.stem, self.units = nn.Conv2d(1, 64, 3, padding=1), nn.ModuleList([unit(64) for _ in range(3)])
        self.fc = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for unit in self.units:
            x = (x + unit(x)).relu()
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


class TokenConv(nn.Module):
    """Dilated 1-D convolutions over embedded tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 32)
        widths = (32, 64, 64, 64)
        self.convs = nn.ModuleList(
            nn.Conv1d(a, b, 3, padding=2**i, dilation=2**i) for i, (a, b) in enumerate(itertools.pairwise(widths))
        )
        self.fc = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).transpose(1, 2)
        for conv in self.convs:
            x = conv(x).relu()
        out: Tensor = self.fc(x.amax(2))
        return out


class TwoInputs(nn.Module):
    """An image and a table, joined."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(1, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU())
        self.table, self.fc = nn.Linear(16, 32), nn.Linear(32 * 4 + 32, CLASSES)

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        out: Tensor = self.fc(torch.cat([self.image(image).flatten(1), self.table(table).relu()], 1))
        return out


class Repeating(nn.Module):
    """Control flow on what is known before it runs: the same layer again and again, and a branch on the shape."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.fc = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) if x.shape[1] == 64 else F.pad(x, (0, 64 - x.shape[1]))
        for _ in range(3):
            x = x + self.again(x.relu())
        out: Tensor = self.fc(x)
        return out


class Branching(nn.Module):
    """Control flow on values, which no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, CLASSES), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.a(x) if x.mean() > 0 else self.b(x)
        return out


def _torchvision(name: str, **arguments: Any) -> nn.Module:
    import torchvision

    built: nn.Module = getattr(torchvision.models, name)(weights=None, num_classes=CLASSES, **arguments)
    return built


def _torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    built: nn.Module = VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=CLASSES
    )
    return built


def _encoder(*, norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True, norm_first=norm_first)
    return TokenTransformer(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A network of a family, the form of the data that it takes, and how fast it is trained."""

    family: str
    build: Callable[[], nn.Module]
    data: Callable[[], Data]
    learning_rate: float = 2e-3


ARCHITECTURES: Mapping[str, Architecture] = {
    "resnet20": Architecture(family="residual", build=lambda: resnet20(1), data=small_images),
    "torchvision resnet18": Architecture(family="residual", build=lambda: _torchvision("resnet18"), data=large_images),
    "torchvision mobilenet_v2": Architecture(
        family="depthwise", build=lambda: _torchvision("mobilenet_v2"), data=large_images
    ),
    "torchvision mobilenet_v3_small": Architecture(
        family="depthwise, squeeze-excite", build=lambda: _torchvision("mobilenet_v3_small"), data=large_images
    ),
    "torchvision shufflenet_v2_x0_5": Architecture(
        family="channel shuffle", build=lambda: _torchvision("shufflenet_v2_x0_5"), data=large_images
    ),
    "torchvision squeezenet1_1": Architecture(
        family="concatenation", build=lambda: _torchvision("squeezenet1_1"), data=large_images,
        learning_rate=3e-4,  # it ends in a ReLU, which larger steps silence
    ),
    "torchvision densenet (2-2)": Architecture(
        family="dense connections", build=lambda: _densenet(), data=large_images
    ),
    "grouped": Architecture(family="grouped convolutions", build=Grouped, data=small_images),
    "token_conv": Architecture(family="1-D convolutions, embedding", build=TokenConv, data=tokens),
    "torchvision vit": Architecture(family="transformer, class token", build=_torchvision_vit, data=large_images),
    "small_vit": Architecture(
        family="transformer, patches", build=lambda: SmallViT(size=8, patch=2, depth=2), data=small_images
    ),
    "encoder_post_norm": Architecture(
        family="nn.TransformerEncoder, norm after", build=lambda: _encoder(norm_first=False), data=tokens
    ),
    "encoder_pre_norm": Architecture(
        family="nn.TransformerEncoder, norm before", build=lambda: _encoder(norm_first=True), data=tokens
    ),
    "joined_attention": Architecture(
        family="attention by hand, joined",
        build=lambda: TokenTransformer(nn.Sequential(*[Block(Attention(64, 4), 64) for _ in range(2)])), data=tokens,
    ),
    "causal_attention": Architecture(
        family="attention by hand, q k v",
        build=lambda: TokenTransformer(nn.Sequential(*[Block(CausalAttention(64, 4), 64) for _ in range(2)])),
        data=tokens,
    ),
    "row_lstm": Architecture(family="LSTM", build=lambda: RowRecurrent(nn.LSTM), data=rows),
    "lstm_2": Architecture(family="LSTM, 2 layers", build=lambda: RowRecurrent(nn.LSTM, layers=2), data=rows),
    "lstm_2_bidirectional": Architecture(
        family="LSTM, 2 layers, bidirectional",
        build=lambda: RowRecurrent(nn.LSTM, layers=2, both=True, mean=True), data=rows,
    ),
    "row_gru": Architecture(family="GRU", build=lambda: RowRecurrent(nn.GRU), data=rows),
    "gru_2_bidirectional": Architecture(
        family="GRU, 2 layers, bidirectional",
        build=lambda: RowRecurrent(nn.GRU, layers=2, both=True, mean=True), data=rows,
    ),
    "word_gru": Architecture(family="GRU, embedding", build=lambda: WordGRU(classes=CLASSES, hidden=64), data=tokens),
    "conv_lstm": Architecture(family="convolutions, then LSTM", build=ConvLSTM, data=small_images),
    "mlp": Architecture(family="plain layers", build=lambda: TableMLP(64, CLASSES), data=flat),
    "two_inputs": Architecture(family="several inputs", build=TwoInputs, data=image_and_sums),
    "repeating": Architecture(family="control flow on shapes", build=Repeating, data=flat),
    "branching": Architecture(family="control flow on values", build=Branching, data=flat),
}  # fmt: skip


def _densenet() -> nn.Module:
    from torchvision.models.densenet import DenseNet

    built: nn.Module = DenseNet(16, (2, 2), 32, num_classes=CLASSES)
    return built


# Running -------------------------------------------------------------------------------------------


def run(name: str, *, workspace: Path) -> str:
    """Search one architecture, or take the search that is there; the reason if that was refused, else nothing."""
    study = name.replace(" ", "-").replace("(", "").replace(")", "")
    if study in study_names(workspace):
        if autocompress.open_study(study, workspace).record.state is not StudyState.FINISHED:
            resume_study(study, workspace=workspace, listener=lambda _: None)
        return ""
    architecture = ARCHITECTURES[name]
    torch.manual_seed(0)
    torch.set_num_threads(cores())
    model, data = architecture.build(), architecture.data()
    train_(model, data["train"], architecture.learning_rate)
    try:
        autocompress.search(
            model, data, budget=_BUDGET, name=study, workspace=workspace, max_drop=MAX_DROP,
            settings={"search": {"max_trials": TRIALS, "train_s": TRAIN_S, "sweep": 2}},
        )  # fmt: skip
    except AutocompressError as error:
        return str(error)
    return ""


def train_(model: nn.Module, train: tuple[Any, Tensor], learning_rate: float) -> nn.Module:
    """A few steps of Adam, in place: enough for its files to be told apart."""
    inputs, labels = train
    parts = inputs if isinstance(inputs, tuple) else (inputs,)
    optimizer = torch.optim.Adam(model.train().parameters(), lr=learning_rate)
    generator = torch.Generator().manual_seed(0)
    for _ in range(_STEPS):
        chosen = torch.randint(len(labels), (_BATCH,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(*(p[chosen] for p in parts)), labels[chosen]).backward()
        optimizer.step()
    return model.eval()


# Telling -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far files are from the networks they were made of, over all files of one kind of activations.

    Attributes:
        difference: largest of any output, relative to the largest output.
        same: share of samples with the same answer, the smallest of any file.
    """

    files: int
    difference: float
    same: float


def agreements(study: StudyRecord, trials: list[TrialRecord], workspace: Path) -> dict[str, Agreement]:
    """Every file of a study against torch on its test data, by the kind of activations."""
    from autocompress.space.attention import open_attention_
    from autocompress.study.rebuild import restore

    folder = workspace / "artifacts" / study.name
    model, data, _ = cloudpickle.loads((folder / "source.pkl").read_bytes())
    inputs = data["test"][0]
    parts = inputs if isinstance(inputs, tuple) else (inputs,)
    example = tuple(p[:2] for p in parts)
    train = data["train"][0]
    open_attention_(model.eval(), tuple(t[:2] for t in (train if isinstance(train, tuple) else (train,))))
    assert study.facts is not None
    found: dict[str, list[tuple[float, float]]] = {}
    for trial in trials:
        if trial.state is not TrialState.COMPLETE or trial.origin == "baseline" or trial.artifact is None:
            continue
        network = restore(model, trial.plan, study.facts, (workspace / trial.artifact).parent, example)
        with torch.no_grad():
            wanted = network(*parts).numpy()
        session = ort.InferenceSession(workspace / trial.artifact)
        feeds = {spec.name: p.numpy() for spec, p in zip(session.get_inputs(), parts, strict=True)}
        got = session.run(None, feeds)[0]
        difference = float(np.abs(got - wanted).max() / np.abs(wanted).max())
        same = float((got.argmax(1) == wanted.argmax(1)).mean())
        found.setdefault(trial.plan.activations, []).append((difference, same))
    return {
        kind: Agreement(files=len(pairs), difference=max(p[0] for p in pairs), same=min(p[1] for p in pairs))
        for kind, pairs in found.items()
    }


def row(name: str, reason: str, workspace: Path) -> str:
    """One line of the table."""
    family = ARCHITECTURES[name].family
    if reason:
        return f"| {name} | {family} | - | - | refused: {_short(reason)} | - | - | - |"
    result = autocompress.open_study(name.replace(" ", "-").replace("(", "").replace(")", ""), workspace)
    study, facts, base = result.record, result.record.facts, result.record.baseline
    assert facts is not None
    assert base is not None
    kinds = Counter(n.kind for n in facts.layers)
    quantized = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    heads = sum(g.name not in g.layers for g in facts.groups)
    hidden = sum(n.kind == "recurrent" and n.name in {g.name for g in facts.groups} for n in facts.layers)
    parts = {
        "widths": len(facts.groups) - heads - hidden,
        "heads": heads,
        "hidden": hidden,
        "blocks": len(facts.blocks),
    }
    pruned = ", ".join(_counted(count, what) for what, count in parts.items() if count) or "nothing"
    left = Counter(f"{s.what}: {s.reason}" for s in facts.skips if "outputs of the network" not in s.reason)
    alone = "; ".join(f"{_short(text)} ({count})" if count > 1 else _short(text) for text, count in left.items())
    told = agreements(study, result.trials, workspace)
    compared = "; ".join(
        f"{kind} {a.difference:.0e}, {a.same:.1%} ({a.files})" for kind, a in sorted(told.items())
    )  # fmt: skip
    within = [p for p in result.front if base.val - p.val <= MAX_DROP]
    smallest = min((p.size_bytes / base.size_bytes for p in within), default=1.0)
    fastest = min((p.latency_ratio for p in within), default=1.0)
    return (
        f"| {name} | {family} | {pruned} | {quantized} | {alone or '-'} | {compared} | {smallest:.3f} | {fastest:.2f} |"
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what.removesuffix('s') if count == 1 else what}"


def _short(text: str, most: int = 110) -> str:
    text = text.replace("|", "/").replace("\n", " ")
    return text if len(text) <= most else f"{text[:most]}..."


def table(rows: list[str]) -> str:
    """The page; it says so if some of the networks were left out with `--only`."""
    missing = f" Of {len(ARCHITECTURES)} networks, {len(rows)} were run." if len(rows) < len(ARCHITECTURES) else ""
    return (
        f"""# Architectures

Printed by `python docs/architectures.py` on {processor()}. Each network is trained for {_STEPS} steps on
scikit-learn's digits and searched with {TRIALS} trials of {TRAIN_S:g} s of training: the dense file, fp16, int8 (two
kinds where there are two), two uniform plans and what the sampler proposes.

A row tells of one network:

- *Can be pruned*: how many groups of channels (widths), of attention heads and of recurrent layers' hidden units may be
  narrowed, each group by a share of its own, and how many blocks may be left out whole. *Can be rounded*: the layers
  whose weights may have 8 bits or fewer, by kind.
- *Left alone*: what could not be pruned or run in integers, and why; - where there was nothing.
- *File against torch*, per kind of activations: the largest difference of any output of any file, relative to the
  largest output; the smallest share of the 350 test images with the same answer; and, in brackets, the number of files.
  Float files have fp16 ones among them; uint8 and dynamic round activations to 8 bits, which torch does not do here.
- *Size* and *latency*: of the smallest and of the fastest file that lose at most {MAX_DROP * 100:.0f} points of
  validation accuracy, divided by the dense file's; 0.1 is a tenth. They are seldom the same file, and 1.00 means that
  no file within those points was smaller or faster. A search this short says what works, not how well.{missing}

| network | family | can be pruned | can be rounded | left alone | file against torch | size | latency |
|---|---|---|---|---|---|---|---|
"""
        + "\n".join(rows)
        + "\n"
    )


def main() -> int:
    """Run what is asked for and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names, separated by commas")
    parser.add_argument("--workspace", type=Path, default=None, help="kept, and used again; a temporary one if omitted")
    parser.add_argument("--out", default=str(Path(__file__).with_suffix(".md")), help="file, or - for the terminal")
    given = parser.parse_args()
    names = [n for n in given.only.split(",") if n] or list(ARCHITECTURES)
    if unknown := set(names) - set(ARCHITECTURES):
        parser.error(f"unknown architecture {sorted(unknown)[0]!r}; known are {', '.join(ARCHITECTURES)}")
    with tempfile.TemporaryDirectory() as temporary:
        workspace = given.workspace or Path(temporary)
        rows = []
        for name in names:
            print(name, file=sys.stderr)
            rows.append(row(name, run(name, workspace=workspace), workspace))
            print(rows[-1], file=sys.stderr)
    text = table(rows)
    if given.out == "-":
        print(text)
    else:
        Path(given.out).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
