"""Ways of thinking as one table: what a completion token's input is made of, and when a row thinks.

Every method is one sentence: the input of a completion token is a mix of its embedding and a state, while a schedule
says that the row thinks, with noise on the state where a rollout explores. A method is a row of [`THINKING_METHODS`];
`thinking_mode` names it, and fields of the config change parts of it.
"""

import dataclasses
import functools
from dataclasses import dataclass


SOURCES = ("mean_embedding", "unit_mean_embedding", "projection", "hidden", "aligned", "fusion")
MIXERS = ("gated", "replace", "add", "token")
SCHEDULES = ("until_marker", "count", "entropy", "confidence", "head", "boundary", "always")
NOISES = ("none", "gaussian", "gumbel", "dropout")
TOKEN_POLICIES = ("sample", "argmax", "placeholder", "drawn")


@dataclass(frozen=True)
class ThinkingMethod:
    """
    One way of thinking.

    Args:
        source (`str`, *optional*):
            The state, from what produced the token: `"mean_embedding"`, `sum_v p_v E[v]`; `"unit_mean_embedding"`, the
            same over the norm of `p`; `"hidden"`, the last hidden state; `"projection"`, a learned projection of it;
            `"aligned"`, its image under the linear map that takes the output head to the input embeddings;
            `"fusion"`, a weighted mean of `"aligned"` and `"mean_embedding"`. `None`: there is none.
        mixer (`str`):
            `"gated"`: the state is mixed into the token's embedding by gates; `"replace"`: it is the input; `"add"`:
            it is added to the token's embedding; `"token"`: the input is the token's embedding.
        schedule (`str`):
            When a row thinks. `"until_marker"`: until its answer marker; `"count"`: for `thinking_count` tokens;
            `"always"`. The others choose token by token, up to the marker or count: `"entropy"`, in blocks that begin
            where the entropy rises and end where it falls; `"confidence"`, where no token is likely; `"head"`, a
            learned choice; `"boundary"`, between two tokens.
        noise (`str`):
            What sampling draws besides the token: `"gaussian"` noise on the state; `"gumbel"`, the weights that
            embeddings are averaged with; `"dropout"`, one mask of the state for each row; `"none"`.
        token_policy (`str`):
            The token that a thought has: `"sample"`, whatever decoding chooses; `"argmax"`, the likeliest one;
            `"placeholder"`, always the same one; `"drawn"`, the one with the largest drawn weight.
        source_paper (`str`): where it is from.
    """

    source: str | None
    mixer: str
    schedule: str
    noise: str
    token_policy: str
    source_paper: str

    @property
    def fuses(self) -> bool:
        """Whether thinking changes the input of a token."""
        return self.mixer != "token"

    @property
    def reads_distribution(self) -> bool:
        """Whether the state is an average of embeddings by the distribution the token was drawn from."""
        return self.source in ("mean_embedding", "unit_mean_embedding")

    @property
    def reads_weights(self) -> bool:
        """Whether the state is made with the embedding matrix, and has the scale of its rows."""
        return self.reads_distribution or self.source in ("aligned", "fusion")


THINKING_METHODS = {
    "projection": ThinkingMethod(
        "projection", "gated", "until_marker", "none", "sample", "HRPO (arXiv 2505.18454), own state"
    ),
    "embedding": ThinkingMethod(
        "unit_mean_embedding", "gated", "until_marker", "none", "sample", "HRPO (arXiv 2505.18454)"
    ),
    "soft": ThinkingMethod(
        "mean_embedding", "replace", "until_marker", "none", "sample", "Soft Thinking (arXiv 2505.15778)"
    ),
    "swi": ThinkingMethod("mean_embedding", "replace", "entropy", "none", "sample", "SwiReasoning (arXiv 2510.05069)"),
    "later": ThinkingMethod("aligned", "replace", "count", "none", "placeholder", "LaTER (arXiv 2605.07315)"),
    "soft_tokens": ThinkingMethod(
        "mean_embedding", "replace", "until_marker", "gaussian", "sample", "Soft Tokens (arXiv 2509.19170)"
    ),
    "gumbel": ThinkingMethod(
        "mean_embedding", "replace", "until_marker", "gumbel", "drawn", "SofT-GRPO (arXiv 2511.06411)"
    ),
    "tarpo": ThinkingMethod("mean_embedding", "replace", "head", "none", "sample", "TARPO (arXiv 2606.05859)"),
    "switch": ThinkingMethod("hidden", "replace", "boundary", "none", "sample", "SWITCH (arXiv 2606.13106)"),
    "coconut": ThinkingMethod("hidden", "replace", "count", "none", "placeholder", "Coconut (arXiv 2412.06769)"),
    "codi": ThinkingMethod("projection", "replace", "count", "none", "placeholder", "CODI (arXiv 2502.21074)"),
    "pause": ThinkingMethod(None, "token", "count", "none", "placeholder", "pause tokens (arXiv 2310.02226)"),
    "none": ThinkingMethod(None, "token", "until_marker", "none", "sample", "no thinking: the base model"),
}


@functools.lru_cache
def changed_method(mode: str, **parts: str | None) -> ThinkingMethod:
    """The row of a mode with other parts (`source`, `mixer`, `schedule`, `noise`) where they are not `None`."""
    parts = {name: part for name, part in parts.items() if part is not None}
    return dataclasses.replace(THINKING_METHODS[mode], **parts)
