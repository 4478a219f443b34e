"""Self-speculative decoding (LayerSkip, arXiv 2404.16710): the first layers draft, the whole model verifies."""

from transformers.generation import GenerationMixin

from ...early_exit.self_speculation import SelfSpeculation
from .stop_strings import with_stop_strings


def generate(model, *, depth, draft_tokens=10, min_confidence=0.4, vocabulary=None, tokenizer=None, **kwargs):
    """
    Generates greedily, one sequence, in fewer passes of the whole model: the tokens are those of greedy decoding.

    Args:
        depth (`int`): layers that draft, from 1 to one below all.
        draft_tokens (`int`, *optional*, defaults to `10`): tokens drafted at most before the model verifies them.
        min_confidence (`float`, *optional*, defaults to `0.4`): a draft ends behind a token of less probability.
        vocabulary (`Sequence[int]`, *optional*): ids of the tokens that drafts choose from; `None`: all.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): finds stop strings.
        kwargs: arguments of `generate`.
    """
    kwargs = with_stop_strings(tokenizer, kwargs)
    speculation = SelfSpeculation(model, depth, draft_tokens, min_confidence, vocabulary)
    return GenerationMixin.generate(model, custom_generate=speculation, **kwargs)
