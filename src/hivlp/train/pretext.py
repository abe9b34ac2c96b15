"""What the towers may learn beside retrieval: masked words, and whether a picture and a text belong together.

Both are for pre-training from towers that have never seen the other side; their heads are thrown away afterwards.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from hivlp.model.heads import PrefixHead
from hivlp.model.hivlp_model import HiVLPModel, LevelVectors
from hivlp.model.tower import Features
from hivlp.model.towers import BertTextTower
from hivlp.train.recipe import Recipe, RecipeError


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
        self.weights: dict[str, float] = {}
        self.tasks = nn.ModuleDict()
        if config.masked_language:
            self.weights["masked_language"] = config.masked_language
            self.tasks["masked_language"] = MaskedLanguage(model, tokenizer, config.masked_share)
        if config.matching:
            self.weights["matching"] = config.matching
            self.tasks["matching"] = Matching(finest.dim)
        self._finest = finest.name

    def forward(
        self, image: Tensor | Features, text: tuple[Tensor, Tensor] | Features, ids: Tensor
    ) -> tuple[LevelVectors, LevelVectors, dict[str, Tensor]]:
        """Level vectors as :meth:`hivlp.model.hivlp_model.HiVLPModel.forward`, and each task's loss, unweighted.

        Args:
            image: pixels or features.
            text: tokens or features; masked words need tokens.
            ids: (B,) equal for pairs that may be exchanged.
        """
        image_vectors, text_vectors = self.model(image, text, self._dropout, self._gradient)
        losses: dict[str, Tensor] = {}
        for name, task in self.tasks.items():
            if isinstance(task, MaskedLanguage):
                if isinstance(text, dict):
                    raise RecipeError("pretext.masked_language needs a text tower that learns: set optim.tower_lr")
                losses[name] = task(self.model.text_tower, *text, image_vectors[self._finest])
            else:
                losses[name] = task(image_vectors[self._finest], text_vectors[self._finest], ids)
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

    def forward(self, tower: BertTextTower, ids: Tensor, attention: Tensor, image: Tensor) -> Tensor:
        """Scalar: the mean over masked tokens; 0 if chance masked none.

        Args:
            tower: whose states are read, and whose token table is the decoder's too.
            ids: (B, T) int64.
            attention: (B, T) int64.
            image: (B, D) the pictures' finest vectors.
        """
        chosen = (torch.rand(ids.shape, device=ids.device) < self.share) & (attention > 0)
        chosen &= ~torch.isin(ids, self.special)
        kind = torch.rand(ids.shape, device=ids.device)
        other = torch.randint(self.vocabulary, ids.shape, device=ids.device)
        masked = torch.where(chosen & (kind < 0.8), self.mask, ids)
        masked = torch.where(chosen & (kind >= 0.9), other, masked)
        states = tower.token_states(masked, attention) + self.picture(image)[:, None]
        table = tower.bert.embeddings.word_embeddings.weight[: self.vocabulary]
        logits = self.transform(states[chosen]) @ table.T + self.bias
        return F.cross_entropy(logits.float(), ids[chosen], reduction="sum") / chosen.sum().clamp(min=1)


class Matching(nn.Module):
    """Whether a picture and a text belong together, for pairs and for the wrong pairs that look most alike.

    Image-text matching with in-batch hard negatives (ALBEF; Li et al., 2021, section 3.2), here on the two vectors and
    their product, since a dual encoder has no layers that see both.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.judge = nn.Sequential(nn.Linear(3 * dim, dim), nn.GELU(), nn.Linear(dim, 1))

    def forward(self, image: Tensor, text: Tensor, ids: Tensor) -> Tensor:
        """Scalar: binary cross-entropy over B pairs and up to 2 B wrong ones.

        Args:
            image: (B, D) unit vectors.
            text: (B, D) unit vectors.
            ids: (B,) equal for pairs that may be exchanged; these are never taken for wrong.
        """
        right = ids[:, None] == ids[None, :]
        pictures, texts = [image], [text]
        alone = bool(right.all(1).any())
        if not alone:
            scores = (10 * image @ text.T).detach().float().masked_fill(right, -torch.inf)
            pictures += [image, image[scores.T.softmax(1).multinomial(1)[:, 0]]]
            texts += [text[scores.softmax(1).multinomial(1)[:, 0]], text]
        x, y = torch.cat(pictures), torch.cat(texts)
        logits = self.judge(torch.cat([x, y, x * y], 1))[:, 0].float()
        target = (torch.arange(len(logits), device=logits.device) < len(image)).float()
        return F.binary_cross_entropy_with_logits(logits, target)
