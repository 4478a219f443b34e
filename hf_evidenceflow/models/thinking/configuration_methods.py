"""The fields that change the parts of a way of thinking, and what goes together."""

from dataclasses import dataclass

from .thinking_methods import MIXERS, NOISES, SCHEDULES, SOURCES, TOKEN_POLICIES, ThinkingMethod, changed_method


_PARTS = {
    "thinking_source": SOURCES,
    "thinking_mixer": MIXERS,
    "thinking_schedule": SCHEDULES,
    "thinking_noise": NOISES,
    "thinking_token_policy": TOKEN_POLICIES,
}
# Smallest value, largest value, whether the value must be an integer
_RANGES = {
    "thinking_top_k": (1, None, True),
    "thinking_sigma": (0, None, False),
    "thinking_fusion": (0, 1, False),
    "thinking_threshold": (0, None, False),
    "thinking_min_text": (1, None, True),
    "thinking_min_latent": (1, None, True),
    "thinking_max_blocks": (0, None, True),
    "thinking_start_id": (0, None, True),
    "thinking_end_id": (0, None, True),
}
_DRAWN_TOKENS = 30  # of the Gumbel draw by default, as in the scripts of SofT-GRPO


@dataclass
class ThinkingMethodFields:
    r"""
    Fields that change the parts of a `thinking_mode` of [`THINKING_METHODS`] and set their numbers. Mode `none` stays
    the base model whatever they are.

    Args:
        thinking_source, thinking_mixer, thinking_schedule, thinking_noise (`str`, *optional*):
            Parts of a [`ThinkingMethod`], of which the choices are there; `None`: the mode's own.
        thinking_top_k (`int`, *optional*):
            Average the embeddings of so many likeliest tokens; `None`: of all, and of 30 under the noise `"gumbel"`.
        thinking_temperature (`float`, *optional*, defaults to `1`):
            Temperature > 0 of the weights that embeddings are averaged with, on top of what sampling does; under
            `"gumbel"` that of the Gumbel-softmax.
        thinking_sigma (`float`, *optional*, defaults to `0.33`):
            Standard deviation >= 0 of the noise `"gaussian"`, as a multiple of the root mean square of the embedding
            matrix's entries.
        thinking_noise_dropout (`float`, *optional*, defaults to `0.1`):
            Share in [0, 1) of a state's entries that the noise `"dropout"` sets to 0.
        thinking_fusion (`float`, *optional*, defaults to `0.5`):
            Weight in [0, 1] of the aligned state in the source `"fusion"`.
        thinking_min_latent, thinking_min_text (`int`, *optional*, default to `1` and `512`):
            Least length of a block of thoughts and of one of text in the schedule `"entropy"`.
        thinking_max_blocks (`int`, *optional*):
            Blocks of thoughts of a row in the schedule `"entropy"`, at most; the first begins with the completion. 0
            never thinks, `None` sets no limit.
        thinking_threshold (`float`, *optional*, defaults to `0.9`):
            The schedule `"confidence"` thinks where the likeliest token has less than this probability; 0 never does.
        thinking_start_id, thinking_end_id (`int`, *optional*):
            Tokens between which the schedule `"boundary"` thinks; both are text. A prompt that ends with the first one
            begins with thoughts.
        thinking_has_head (`bool`, *optional*, defaults to `False`):
            Whether the model has the module of the schedule `"head"`, in whatever mode. Set by a model in it.
    """

    thinking_source: str | None = None
    thinking_mixer: str | None = None
    thinking_schedule: str | None = None
    thinking_noise: str | None = None
    thinking_top_k: int | None = None
    thinking_temperature: float | int = 1.0
    thinking_sigma: float | int = 0.33
    thinking_noise_dropout: float | int = 0.1
    thinking_fusion: float | int = 0.5
    thinking_min_latent: int = 1
    thinking_min_text: int = 512
    thinking_max_blocks: int | None = None
    thinking_threshold: float | int = 0.9
    thinking_start_id: int | None = None
    thinking_end_id: int | None = None
    thinking_has_head: bool = False

    @property
    def thinking_method(self) -> ThinkingMethod:
        """The row of [`THINKING_METHODS`] of the mode, with the parts that the config changes."""
        if self.thinking_mode == "none":
            return changed_method("none")
        return changed_method(
            self.thinking_mode,
            source=self.thinking_source,
            mixer=self.thinking_mixer,
            schedule=self.thinking_schedule,
            noise=self.thinking_noise,
        )

    @property
    def token_policy(self) -> str:
        """`thinking_token_policy`, or the method's own."""
        return self.thinking_token_policy or self.thinking_method.token_policy

    @property
    def token_matters(self) -> bool:
        """Whether what follows a thought depends on its token, the end of the thinking apart."""
        return self.thinking_method.mixer != "replace" and self.token_policy != "placeholder"

    @property
    def ends_by_marker(self) -> bool:
        """Whether the answer marker ends the thinking."""
        by_marker = self.thinking_count is None and self.thinking_answer_start is not None
        return by_marker and self.thinking_mode != "none" and self.thinking_method.schedule != "always"

    @property
    def averaged_tokens(self) -> int | None:
        """Number of tokens whose embeddings are averaged; `None`: all."""
        if self.thinking_top_k is None and self.thinking_method.noise == "gumbel":
            return min(_DRAWN_TOKENS, self.vocab_size)
        return self.thinking_top_k

    def check_method(self):
        """Raise a `ValueError` for parts or numbers that do not exist, or do not go together."""
        for name, choices in _PARTS.items():
            if getattr(self, name) not in (None, *choices):
                raise ValueError(
                    f"`{name}` must be one of {', '.join(map(repr, choices))} or None, got {getattr(self, name)!r}."
                )
        for name, (least, most, whole) in _RANGES.items():
            value = getattr(self, name)
            if value is None:
                continue
            if value < least or (most is not None and value > most) or (whole and not isinstance(value, int)):
                kind, limit = "an integer" if whole else "a number", f" and at most {most}" if most else ""
                raise ValueError(f"`{name}` must be {kind} of at least {least}{limit}, got {value!r}.")
        if not self.thinking_temperature > 0:
            raise ValueError(f"`thinking_temperature` must be above 0, got {self.thinking_temperature}.")
        if self.thinking_mode != "none":
            self._check_parts(self.thinking_method)

    def _check_parts(self, method):
        if method.fuses and method.source is None:
            raise ValueError(
                f"`thinking_mixer={method.mixer!r}` mixes a state into the inputs, and "
                f"`thinking_mode={self.thinking_mode!r}` has none: set `thinking_source`."
            )
        if method.noise != "none" and not method.fuses:
            raise ValueError(
                f"`thinking_noise={method.noise!r}` is noise on a state, and the mixer 'token' feeds none. Leave it "
                "out, or set `thinking_mixer`."
            )
        if method.noise == "gumbel" and not method.reads_distribution:
            raise ValueError(
                "`thinking_noise='gumbel'` draws the weights of embeddings: it needs the source 'mean_embedding' or "
                f"'unit_mean_embedding', got {method.source!r}."
            )
        if self.thinking_count is None and method.schedule == "count":
            raise ValueError(
                f"`thinking_mode={self.thinking_mode!r}` thinks a fixed number of tokens: set `thinking_count`."
            )
        ids = self.thinking_start_id, self.thinking_end_id
        if method.schedule == "boundary" and (None in ids or ids[0] == ids[1]):
            raise ValueError(
                f"`thinking_mode={self.thinking_mode!r}` thinks between two tokens: set `thinking_start_id` and "
                f"`thinking_end_id` to two different ids, got {ids[0]} and {ids[1]}."
            )
        if self.token_policy == "drawn" and method.noise != "gumbel":
            raise ValueError(
                "`thinking_token_policy='drawn'` takes the token with the largest drawn weight: it needs "
                f"`thinking_noise='gumbel'`, got {method.noise!r}."
            )
        if self.token_policy == "placeholder":
            if self.thinking_count is None:
                raise ValueError(
                    "`thinking_token_policy='placeholder'` never draws a token that could end the thinking: set "
                    "`thinking_count`."
                )
            if self.thinking_placeholder_id is None:
                raise ValueError(
                    f"`thinking_mode={self.thinking_mode!r}` gives thoughts a placeholder token: set "
                    "`thinking_placeholder_id` to an id that ends no text."
                )
