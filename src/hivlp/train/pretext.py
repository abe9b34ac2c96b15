"""Pre-training tasks beside retrieval: masked language modelling and image-text matching.

Both are for pre-training from towers that have never seen the other side; their heads are thrown away afterwards. Which
words are masked and which pairs are wrong is drawn for the whole batch from the seed and the step, so that neither
depends on micro-batches or on the number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from hivlp.errors import RecipeError
from hivlp.model.heads import PrefixHead
from hivlp.model.hivlp_model import HiVLPModel, LevelVectors
from hivlp.model.tower import Features
from hivlp.model.towers import BertTextTower
from hivlp.objective import gather
from hivlp.objective.computed import Computed, exact
from hivlp.train.recipe.schema import Recipe

Masked = tuple[Tensor, Tensor]
"""(B, T) token ids with some replaced, and what each of these counts, 0 for the others."""


class TrainingModel(nn.Module):
    """The model and its pretext tasks, as one module whose forward pass gives all that a step needs."""

    def __init__(self, model: HiVLPModel, recipe: Recipe, tokenizer: Tokenizer) -> None:
        """Build the heads of the tasks that have a weight.

        Raises:
            RecipeError: if the text tower or its vocabulary cannot mask words.
        """
        super().__init__()
        self.model, config, finest = model, recipe.pretext, model.config.levels[-1]
        self._dropout = recipe.optim.feature_dropout
        # A prefix of the finest vector has nothing of its own that could learn.
        self._gradient = {
            level.name: recipe.optim.tower_gradient.get(
                level.name, float(isinstance(model.image_heads[level.name], PrefixHead))
            )
            for level in model.config.levels[:-1]
        }
        self.words = MaskedLanguage(model, tokenizer, config.masked_share) if config.masked_language else None
        self._finest = finest.name

    def forward(
        self,
        image: Tensor | Features,
        text: tuple[Tensor, Tensor] | Features,
        masked: Masked | None = None,
    ) -> tuple[LevelVectors, LevelVectors, dict[str, Tensor]]:
        """Level vectors as :meth:`hivlp.model.hivlp_model.HiVLPModel.forward`, and the masked words' loss, unweighted.

        Args:
            image: pixels or features.
            text: tokens or features; masked words need tokens.
            masked: these texts' part of :meth:`MaskedLanguage.draw` over the whole batch; default: a draw of their own.
        """
        image_vectors, text_vectors = self.model(image, text, self._dropout, self._gradient)
        losses: dict[str, Tensor] = {}
        if self.words is not None:
            if isinstance(text, dict):
                raise RecipeError("pretext.masked_language needs a text tower that learns: set optim.tower_lr")
            losses["masked_language"] = self.words(
                self.model.text_tower, *text, image_vectors[self._finest], masked=masked
            )
        return image_vectors, text_vectors, losses


class MaskedLanguage(nn.Module):
    """Which words were masked, told from the others and from the picture: cross-entropy over the vocabulary.

    The visual-embedding fused masked language modelling of LightningDOT (Sun et al., 2021, equation 2): the picture's
    vector is added to the states of the text's tokens. Masking as in BERT (Devlin et al., 2019): of the chosen tokens
    80% become [MASK], 10% another token, 10% stay.
    """

    def __init__(self, model: HiVLPModel, tokenizer: Tokenizer, share: float) -> None:
        super().__init__()
        mask = tokenizer.token_to_id("[MASK]")
        if mask is None or not isinstance(model.text_tower, BertTextTower):
            raise RecipeError("pretext.masked_language needs a bert text tower and a tokenizer with [MASK]")
        special = [tokenizer.token_to_id(token) for token in ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")]
        self.register_buffer("special", torch.tensor([token for token in special if token is not None]))
        self.mask, self.share = mask, share
        width = model.text_tower.widths[-1]
        self.vocabulary = tokenizer.get_vocab_size()
        self.picture = nn.Linear(model.config.levels[-1].dim, width)
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(self.vocabulary))

    special: Tensor

    def draw(self, ids: Tensor, attention: Tensor, seed: int | None = None) -> Masked:
        """Which words of a batch are masked and by what, and what each counts: together 1.

        Args:
            ids: (B, T) int64, of all processes.
            attention: (B, T) int64.
            seed: of the draw; default: torch's own state.
        """
        rng = torch.Generator()
        rng.manual_seed(int(torch.randint(2**62, ())) if seed is None else seed)
        share, kind = torch.rand((2, *ids.shape), generator=rng).to(ids.device)
        other = torch.randint(self.vocabulary, ids.shape, generator=rng).to(ids.device)
        chosen = (share < self.share) & (attention > 0) & ~torch.isin(ids, self.special.to(ids.device))
        masked = torch.where(chosen & (kind < 0.8), self.mask, ids)
        masked = torch.where(chosen & (kind >= 0.9), other, masked)
        return masked, chosen / chosen.sum().clamp(min=1)

    def forward(
        self, tower: BertTextTower, ids: Tensor, attention: Tensor, image: Tensor, masked: Masked | None = None
    ) -> Tensor:
        """Scalar: these texts' part of the mean over the batch's masked tokens; 0 if chance masked none.

        Args:
            tower: whose states are read, and whose token table is the decoder's too.
            ids: (B, T) int64.
            attention: (B, T) int64.
            image: (B, D) the pictures' finest vectors.
            masked: their rows of :meth:`draw`; default: these texts are the whole batch.
        """
        inputs, counts = self.draw(ids, attention) if masked is None else masked
        chosen = counts > 0
        states = tower.token_states(inputs, attention) + self.picture(image)[:, None]
        table = tower.bert.embeddings.word_embeddings.weight[: self.vocabulary]
        logits = self.transform(states[chosen]) @ table.T + self.bias
        return (counts[chosen] * F.cross_entropy(logits.float(), ids[chosen], reduction="none")).sum()


class Matching(nn.Module):
    """Whether a picture and a text belong together, for pairs and for the wrong pairs that look most alike.

    Image-text matching with in-batch hard negatives (ALBEF; Li et al., 2021, section 3.2), here on the two vectors and
    their product, since a dual encoder has no layers that see both. Wrong pairs are drawn from the batch of all
    processes; gradients are as those of :class:`~hivlp.objective.HierarchicalObjective`.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.judge = nn.Sequential(nn.Linear(3 * dim, dim), nn.GELU(), nn.Linear(dim, 1))

    def forward(self, image: Tensor, text: Tensor, ids: Tensor, seed: int | None = None) -> Tensor:
        """Scalar: binary cross-entropy over the pairs of all processes and two wrong ones for each, if there are any.

        Args:
            image: (B, D) unit vectors of this process.
            text: (B, D) unit vectors.
            ids: (B,) equal for pairs that may be exchanged; these are never taken for wrong.
            seed: of the draw, the same in each process; default: torch's own state.
        """
        sizes = gather.counts(len(image), image.device)
        own = gather.own_rows(sizes)
        everyone = gather.gather(ids, sizes)
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        parameters = list(self.judge.parameters())

        def compute(vectors: Sequence[Tensor], _: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            kind = exact(vectors[0])
            sides = [gather.gather(vector.detach(), sizes).to(kind).requires_grad_() for vector in vectors]
            with torch.enable_grad():
                loss = self._share(sides[0], sides[1], everyone, own, seed)
                found = torch.autograd.grad(loss, [*sides, *parameters])
            total = loss.detach()
            gather.total([*found, total])
            mine = [
                (len(sizes) * gradient[own]).to(vector.dtype)
                for gradient, vector in zip(found[:2], vectors, strict=True)
            ]
            return [total], [*mine, *found[2:]]

        loss: Tensor = Computed.apply(compute, 2, image, text, *parameters)[0]  # type: ignore[no-untyped-call]
        return loss

    def _share(self, image: Tensor, text: Tensor, ids: Tensor, own: slice, seed: int) -> Tensor:
        """The part of the loss that this process's pairs, ``own`` of the N in all, and their wrong ones have."""
        pictures, texts, count = [image[own]], [text[own]], len(image)
        if bool((ids != ids[0]).any()):  # otherwise no pair is wrong
            chance = torch.rand((2, count), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            towards = chance.to(image.device)[:, own]
            wrong_texts = _look_alikes(image, text, ids, own, towards[0])
            wrong_pictures = _look_alikes(text, image, ids, own, towards[1])
            pictures += [image[own], image[wrong_pictures]]
            texts += [text[wrong_texts], text[own]]
            count *= 3
        x, y = torch.cat(pictures), torch.cat(texts)
        logits = self.judge(torch.cat([x, y, x * y], 1))[:, 0]
        target = (torch.arange(len(logits), device=logits.device) < len(pictures[0])).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / count


@torch.no_grad()
def _look_alikes(queries: Tensor, candidates: Tensor, ids: Tensor, own: slice, chance: Tensor) -> Tensor:
    """For each own query a wrong candidate, the likelier the higher its score; by ``chance`` in 0…1, (own,) float64."""
    found = []
    for rows in torch.split(torch.arange(own.start, own.stop, device=ids.device), 1024):
        scores = (10 * queries[rows] @ candidates.T).masked_fill(ids[rows, None] == ids[None, :], -torch.inf)
        upto = scores.double().softmax(1).cumsum(1)
        place = torch.searchsorted(upto, chance[rows - own.start, None] * upto[:, -1:], right=True)[:, 0]
        last = (upto < upto[:, -1:]).sum(1)  # the last candidate that is not impossible
        found.append(torch.minimum(place, last))
    return torch.cat(found)
