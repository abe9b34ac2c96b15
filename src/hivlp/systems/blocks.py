"""Blocks that several systems are made of, whose parameters have the names that the published checkpoints have."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

HEAD = 64
"""Width of an attention head in every published size."""


def bert_config(width: int, **options: Any) -> Any:
    """A configuration of BERT: heads of :data:`HEAD`, LayerNorm epsilon 1e-12, fused attention.

    Args:
        width: of a token's state.
        options: of ``BertConfig``, beyond these.
    """
    from transformers import BertConfig

    usual: dict[str, Any] = {"layer_norm_eps": 1e-12, "attn_implementation": "sdpa"}
    return BertConfig(hidden_size=width, num_attention_heads=max(1, width // HEAD), **usual, **options)


def bert_part(name: str, config: Any) -> nn.Module:
    """One of BERT's parts.

    Args:
        name: of its class in ``transformers``: ``BertEmbeddings``, ``BertLayer``, ``BertPooler``.
        config: see :func:`bert_config`.
    """
    from transformers.models.bert import modeling_bert

    part: nn.Module = getattr(modeling_bert, name)(config)
    return part


def states_of(output: Any) -> Tensor:
    """What a layer gives: its states, or a tuple that begins with them, as ``transformers`` 4 has it."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


class Mlp(nn.Module):
    """Feed-forward block of a vision transformer: (…, width) to four times the width, GELU, and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, states: Tensor) -> Tensor:
        """(…, width) states from (…, width) states."""
        output: Tensor = self.fc2(functional.gelu(self.fc1(states)))
        return output
