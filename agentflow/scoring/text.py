"""The scorer of language models: the whole pass from tokens to log-probs as the `forward` of one module.

One module, because engines that shard parameters gather them in hooks around `forward`: a pass that called decoder and
head apart would find them in pieces.
"""

from torch import Tensor, nn
from transformers import PreTrainedModel

from agentflow.scoring.packing import PackedBatch, sampled_logprobs


class TextScorer(nn.Module):
    """Score the sampled tokens of a packed batch.

    Args:
        model: A causal language model after `use_agentflow_attention`; adapters of peft may surround it.
        temperature: Divides the logits, as it did at sampling time; above 0.
    """

    def __init__(self, model: PreTrainedModel, *, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Return log-probs [S] and entropies [S]; see `packing.sampled_logprobs`."""
        return sampled_logprobs(self.model, batch, temperature=self.temperature)
