"""One optimiser step: the gradients of a batch (GradCache with micro-batches)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hivlp.errors import HivlpError
from hivlp.model.hivlp_model import LevelVectors
from hivlp.objective import HierarchicalObjective
from hivlp.objective.gather import total
from hivlp.train.inputs.batch import Batch
from hivlp.train.pretext import Matching
from hivlp.train.recipe.schema import Recipe

FAILED = "so training has failed: try a lower optim.lr, optim.clip or another compute.precision"


@dataclass
class Losses:
    """What a step minimises.

    Attributes:
        objective: of the levels.
        matching: pairs told from look-alikes, if the recipe asks for it.
        recipe: the weights.
    """

    objective: HierarchicalObjective
    matching: Matching | None
    recipe: Recipe

    def of_vectors(
        self, image: LevelVectors, text: LevelVectors, ids: Tensor, seed: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of all losses that need nothing but vectors, and each by name."""
        terms: dict[str, Tensor] = self.objective(image, text, ids)
        loss = terms["loss"]
        if self.matching is not None:
            finest = self.objective.levels[-1]
            found = self.matching(image[finest], text[finest], ids, seed)
            loss = loss + self.recipe.pretext.matching * found
            terms["pretext/matching"] = found
        return loss, terms


def backward(
    model: nn.Module, losses: Losses, batch: Batch, recipe: Recipe, accelerator: Accelerator
) -> dict[str, Tensor]:
    """Terms of the loss over all processes, with their gradients left in the parameters.

    With ``micro_batch`` the towers see a few pairs at a time, twice: first for the vectors, from which the loss over
    the whole batch gives each vector's gradient, then again to carry that gradient into the weights (GradCache; Gao et
    al., 2021). The result equals that of the whole batch at once but for rounding.

    Raises:
        HivlpError: if the loss is no number.
    """
    micro = recipe.compute.micro_batch
    if not micro or len(batch) <= micro:
        image, text, more = model(batch.image, batch.text, batch.masked)
        loss, terms = losses.of_vectors(image, text, batch.ids, batch.seed)
        accelerator.backward(loss + _weighted(more, recipe, accelerator))
    else:
        terms, more = _through_vectors(model, losses, batch, batch.split(micro), recipe, accelerator)
    shares = [part.detach().clone() for part in more.values()]
    total(shares)
    terms |= {f"pretext/{name}": part for name, part in zip(more, shares, strict=True)}
    for name, term in terms.items():
        if not bool(term.detach().isfinite()):
            raise HivlpError(f"{name} is {float(term.detach())}, {FAILED}")
    return terms


def _through_vectors(
    model: nn.Module, losses: Losses, batch: Batch, parts: list[Batch], recipe: Recipe, accelerator: Accelerator
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    micro = recipe.compute.micro_batch
    states, images, texts = [], [], []
    with torch.no_grad():
        for part in parts:
            states.append(_random_state(batch.ids.device))
            image, text, _ = model(part.image, part.text, part.masked)
            images.append(image)
            texts.append(text)
    sides = [
        {level: torch.cat([part[level] for part in side]).detach().requires_grad_() for level in side[0]}
        for side in (images, texts)
    ]
    loss, terms = losses.of_vectors(sides[0], sides[1], batch.ids, batch.seed)
    accelerator.backward(loss)
    pretext: dict[str, Tensor] = {}
    for number, part in enumerate(parts):
        rows = slice(number * micro, (number + 1) * micro)
        last = number == len(parts) - 1
        _set_random_state(states[number], batch.ids.device)
        # Gradients travel between processes once, with the last part.
        with accelerator.no_sync(model) if not last else accelerator.autocast():
            *again, more = model(part.image, part.text, part.masked)
            for name, value in more.items():
                pretext[name] = pretext.get(name, torch.zeros_like(value)) + value.detach()
            carried = torch.zeros((), device=batch.ids.device)
            for vectors, side in zip(again, sides, strict=True):
                for level, vector in vectors.items():
                    if (gradient := side[level].grad) is not None:
                        carried = carried + (vector * gradient[rows]).sum()
            scale = accelerator.scaler.get_scale() if accelerator.scaler is not None else 1.0
            whole = carried + scale * _weighted(more, recipe, accelerator)
            whole.backward()  # type: ignore[no-untyped-call]
    return terms, pretext


def _weighted(losses: dict[str, Tensor], recipe: Recipe, accelerator: Accelerator) -> Tensor | float:
    """The pretext tasks' part of the loss, of which each process has a share, while gradients are averaged."""
    parts: list[Tensor] = [getattr(recipe.pretext, name) * loss for name, loss in losses.items()]
    return sum(parts, 0.0) * float(accelerator.num_processes)


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
