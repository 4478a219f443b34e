"""Ways of thinking as one table: what a completion token's input is made of, and when a row thinks.

Every method is one sentence: the input of a completion token is a mix of its embedding and a state, while a schedule
says that the row thinks. A method is a row of [`THINKING_METHODS`]; `thinking_mode` names it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ThinkingMethod:
    """
    One way of thinking.

    Args:
        source (`str`, *optional*):
            The state, from what produced the token: `"mean_embedding"`, `sum_v p_v E[v]`; `"unit_mean_embedding"`, the
            same over the norm of `p`; `"hidden"`, the last hidden state; `"projection"`, a learned projection of it.
            `None`: there is none.
        mixer (`str`):
            `"gated"`: the state is mixed into the token's embedding by gates; `"replace"`: it is the input; `"token"`:
            the input is the token's embedding.
        counted (`bool`):
            Whether a row thinks for a fixed number of tokens, `thinking_count`; else until its answer marker.
        token_policy (`str`):
            The token that a thought has: `"sample"`, whatever decoding chooses; `"argmax"`, the likeliest one;
            `"placeholder"`, always the same one.
        source_paper (`str`): where it is from.
    """

    source: str | None
    mixer: str
    counted: bool
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


TOKEN_POLICIES = ("sample", "argmax", "placeholder")

THINKING_METHODS = {
    "projection": ThinkingMethod("projection", "gated", False, "sample", "HRPO (arXiv 2505.18454), own state"),
    "embedding": ThinkingMethod("unit_mean_embedding", "gated", False, "sample", "HRPO (arXiv 2505.18454)"),
    "soft": ThinkingMethod("mean_embedding", "replace", False, "sample", "Soft Thinking (arXiv 2505.15778)"),
    "coconut": ThinkingMethod("hidden", "replace", True, "placeholder", "Coconut (arXiv 2412.06769)"),
    "codi": ThinkingMethod("projection", "replace", True, "placeholder", "CODI (arXiv 2502.21074)"),
    "pause": ThinkingMethod(None, "token", True, "placeholder", "pause tokens (arXiv 2310.02226)"),
    "none": ThinkingMethod(None, "token", False, "sample", "no thinking: the base model"),
}
