"""What the hierarchical objective costs beside a plain one: memory of the loss, and pairs a second of training."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from hivlp.bench.report import Report, measured, memory_bytes
from hivlp.config import HiVLPConfig, PictureConfig, TextConfig, TowerConfig
from hivlp.levels import Level
from hivlp.model.hivlp_model import HiVLPModel
from hivlp.objective import HierarchicalObjective, ObjectiveConfig

BATCH, LARGE, FINE, COARSE = 8192, 32_768, 512, 64
SIDE, TOKENS = 64, 24


class PlainClipLoss(nn.Module):
    """CLIP's loss as its paper writes it (Radford et al., 2021, figure 3): the whole matrix, and autograd.

    With two levels, one such loss for each and the ranking distillation between them, also on whole matrices.
    """

    def __init__(self, levels: Sequence[str] = ("fine",)) -> None:
        super().__init__()
        self.levels = levels
        self.log_scales = nn.Parameter(torch.full((len(levels),), 2.6592))

    def forward(self, image: Mapping[str, Tensor], text: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sum over levels."""
        logits = [
            scale * image[level] @ text[level].T
            for level, scale in zip(self.levels, self.log_scales.exp(), strict=True)
        ]
        loss = sum((_both_ways(matrix) for matrix in logits), torch.zeros(()))
        for coarse in logits[:-1]:
            for student, teacher in ((coarse, logits[-1]), (coarse.T, logits[-1].T)):
                target = teacher.detach().log_softmax(1)
                loss = loss + F.kl_div(student.log_softmax(1), target, reduction="batchmean", log_target=True) / 2
        return {"loss": loss}


def _both_ways(logits: Tensor) -> Tensor:
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


LOSSES: dict[str, Callable[[], nn.Module]] = {
    "plain, one level": PlainClipLoss,
    "plain, two levels": lambda: PlainClipLoss(("coarse", "fine")),
    "hivlp, one level": lambda: HierarchicalObjective(("fine",), ObjectiveConfig()),
    "hivlp, two levels": lambda: HierarchicalObjective(("coarse", "fine"), ObjectiveConfig()),
}


@dataclass(frozen=True, kw_only=True)
class TrainingReport(Report):
    """Memory and speed of the objective beside a plain one; see :func:`run`."""

    batch: int
    dims: dict[str, int]
    memory_mb: dict[str, float]
    large_batch: int
    large_memory_mb: float
    large_matrix_share: float
    memory_ratio: dict[str, float]
    pairs_per_second: dict[str, float]
    throughput_ratio: float

    def to_text(self) -> str:
        """Tables for the terminal."""
        lines = [f"{'':20s}{'MB, batch 8192':>16s}{'pairs/s':>12s}"]
        for name, memory in self.memory_mb.items():
            lines.append(f"{name:20s}{memory:16.0f}{self.pairs_per_second[name]:12.0f}")
        for levels, ratio in self.memory_ratio.items():
            lines.append(f"memory, {levels}, plain over hivlp: {ratio:.1f}×")
        share = f"{self.large_matrix_share:.4f} of one float32 matrix of scores (1/16 is {1 / 16})"
        lines.append(
            f"memory, hivlp's two levels at a batch of {self.large_batch}: {self.large_memory_mb:.0f} MB, {share}"
        )
        lines.append(f"throughput, hivlp's two levels over the plain one: {self.throughput_ratio:.3f}×")
        return "\n".join(lines)


def run(repeats: int = 7) -> TrainingReport:
    """Peak memory of each loss for a batch of 8,192, of ours for 32,768, and training throughput with the same towers.

    Returns:
        ``memory_mb`` by loss and ``memory_ratio`` (plain over ours, by number of levels); ``large_memory_mb`` of our
        two levels and ``large_matrix_share``, that over one matrix of the batch's scores; ``pairs_per_second`` by loss
        (median) and ``throughput_ratio`` (our two levels over the plain one, the median of ratios of runs that took
        turns).
    """
    started = time.perf_counter()
    memory = {name: peak_memory(name) for name in LOSSES}
    large = peak_memory("hivlp, two levels", LARGE)
    rates = throughput(repeats)
    plain, two = rates["plain, one level"], rates["hivlp, two levels"]
    return TrainingReport(
        batch=BATCH,
        dims={"fine": FINE, "coarse": COARSE},
        memory_mb={name: round(value, 1) for name, value in memory.items()},
        large_batch=LARGE,
        large_memory_mb=round(large, 1),
        large_matrix_share=round(large * 2**20 / (4 * LARGE**2), 5),
        memory_ratio={
            levels: round(memory[f"plain, {levels}"] / memory[f"hivlp, {levels}"], 2)
            for levels in ("one level", "two levels")
        },
        pairs_per_second={name: round(statistics.median(values), 1) for name, values in rates.items()},
        throughput_ratio=round(statistics.median(b / a for a, b in zip(plain, two, strict=True)), 3),
        **measured(started, "torch"),
    )


def peak_memory(name: str, batch: int = BATCH) -> float:
    """MB that a loss and its gradients take beyond the vectors that it is given, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (name, batch))


def _measured(name: str, batch: int) -> float:
    loss = LOSSES[name]()
    _backward(loss, 64)  # threads and kernels are there before the measurement begins
    vectors = _vectors(batch)
    before = memory_bytes() / 2**20
    loss(*vectors)["loss"].backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before


def _backward(loss: nn.Module, batch: int) -> None:
    loss(*_vectors(batch))["loss"].backward()


def _vectors(batch: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    image, text = (
        {
            name: F.normalize(torch.randn(batch, dim, generator=generator), dim=-1).requires_grad_()
            for name, dim in (("coarse", COARSE), ("fine", FINE))
        }
        for _ in range(2)
    )
    return image, text


def throughput(repeats: int, batch: int = 256, steps: int = 4) -> dict[str, list[float]]:
    """Pairs a second of whole training steps (towers, loss, AdamW), by loss; the losses take turns."""
    losses = {name: build() for name, build in LOSSES.items()}
    models = {name: _model(("coarse", "fine") if "two" in name else ("fine",)) for name in losses}
    optimizers = {
        name: torch.optim.AdamW([*models[name].parameters(), *losses[name].parameters()], 1e-4) for name in losses
    }
    pixels = torch.randint(0, 256, (batch, SIDE, SIDE, 3), dtype=torch.uint8)
    tokens = torch.randint(0, 1000, (batch, TOKENS))
    mask = torch.ones_like(tokens)
    rates: dict[str, list[float]] = {name: [] for name in losses}
    for repeat in tqdm(range(repeats + 1), desc="throughput", unit="round", disable=None):
        for name, loss in losses.items():
            started = time.perf_counter()
            for _ in range(steps):
                optimizers[name].zero_grad()
                loss(*models[name](pixels, (tokens, mask)))["loss"].backward()
                optimizers[name].step()
            if repeat:  # the first round warms caches
                rates[name].append(batch * steps / (time.perf_counter() - started))
    return rates


def _model(levels: tuple[str, ...]) -> HiVLPModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
    every = {"coarse": Level("coarse", COARSE, 4, 1), "fine": Level("fine", FINE, 4, 2)}
    return HiVLPModel(
        HiVLPConfig(
            "bench",
            tuple(every[level] for level in levels),
            TowerConfig("convnet"),
            TowerConfig("bert", {"vocab_size": 1000, "max_position_embeddings": TOKENS, **sizes}),
            PictureConfig(SIDE),
            TextConfig(TOKENS),
        )
    ).train()
