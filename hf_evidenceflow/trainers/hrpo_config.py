"""Arguments of [`HRPOTrainer`]: the fields that GRPO does not have, and the paper's defaults (arXiv 2505.18454)."""

import json
from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from .precision import resolve_bf16


@dataclass
class HRPOConfig(GRPOConfig):
    r"""
    Configuration of [`HRPOTrainer`]. Differs from [`~trl.GRPOConfig`] in the fields below; the others keep their
    meaning.

    Parameters:
        lr_thinking_residual_gate, lr_thinking_residual_Lambda, lr_thinking_projection, lr_thinking_head (`float`,
        *optional*, default to `1e-4`, `1e-3`, `1e-4`, `1e-4`):
            Learning rates of the thinking modules; the scheduler scales them like `learning_rate`. `None` leaves a
            module at `learning_rate`. Modules that the model's `thinking_mode` does not use are frozen.
        weight_decay_thinking_residual_Lambda (`float`, *optional*, defaults to `0.0`):
            Weight decay of `Lambda`: decay would pull it to 0, that is `a` away from 1.
        max_prompt_length (`int`, *optional*, defaults to `1024`):
            Training prompts with more tokens are dropped when the dataset is loaded and counted, never cut. `None`: no
            limit.
        use_rollout_engine (`bool`, *optional*, defaults to `True`):
            Roll out with [`RolloutEngine`], in all thinking modes: a prompt is computed once for its group, and rows
            that end leave the batch. What it cannot run (beams, say) goes to the stock loop, with a warning.
        rollout_max_rows (`int`, *optional*):
            Completions that the engine decodes at the same time on a process; the others wait until some end. It
            bounds the memory of a rollout. `None`: all.
        share_prompts_in_update (`bool`, *optional*, defaults to `True`):
            Compute the prompt of completions in one batch once in the update too, for policy, old policy and
            reference, and leave out rows that cannot contribute to the loss. Where that does not fit (sharded weights,
            images, layers without full attention), rows are computed in `length_buckets`, with a warning. `False`:
            always in `length_buckets`.
        update_max_tokens (`int`, *optional*, defaults to `8192`):
            Most positions of such a pass; a group of more is split. It bounds what a pass takes beside what is kept
            for the gradient. `None`: the batch is one pass.
        length_buckets (`int`, *optional*):
            Without shared prompts: parts into which the update cuts a batch, sorted by length; each is computed
            without the padding of longer rows. `None`: one for every 8 rows. `1` computes the batch at once, as TRL
            does.
        vllm_engine_kwargs (`dict` or `str`, *optional*):
            With `use_vllm`: arguments of `vllm.LLM` for which TRL has no place, such as `{"dtype": "float32"}`, as a
            dict or as JSON.
        check_memory (`bool`, *optional*, defaults to `True`):
            Estimate, before the first step, what it takes if all completions reach `max_completion_length`, and refuse
            settings that need more than is free, with some that fit.
        parity_check_steps (`int`, *optional*, defaults to `50`):
            Every that many optimizer steps the log-probabilities recorded in the rollout are compared with those of
            the training forward, per sample and after shuffling; logged as `thinking/parity_gap`. `0`: never.
        parity_tolerance (`float`, *optional*):
            Gap beyond which a parity check stops the run. `None`: 1e-3 (largest gap) in fp32, 0.1 (mean gap) in half
            precision. There rounding alone makes .02 to .04 with trained weights, ten times what states that are left
            out make with the paper's gates: check a new setup in fp32 once.
        train_thought_tokens (`bool`, *optional*, defaults to `False`):
            Give the log-probabilities of thoughts an advantage, a KL term and a parity check even where the token of a
            thought changes nothing that follows: in the modes `soft`, `coconut`, `codi` and `pause`, and with a token
            policy other than `"sample"`. By default only the text after the thoughts trains there. Its gradient
            reaches the weights that read a thought, not those that made it, since states are recorded. Where the
            number of thoughts is learned, only the token that ends the thinking carries the choice, not those before.
        density_epsilon (`float`, *optional*):
            Clip of the importance ratio, in the place of `epsilon` and `epsilon_high`, at tokens where the rollout
            drew more than the token: a state, its weights, or the choice to think. `None`: as at the other tokens.
        thought_pages (`int`, *optional*, defaults to `0`):
            Completions shown token by token (gates, words of the states, what the model would write without thinking,
            the probability of a row's `answer` over time) on a page for the first rollout after each log, in
            `output_dir/thoughts`.
        save_hub_code (`bool`, *optional*, defaults to `True`):
            Save the model's code (a few small files) with it, so that it loads with `trust_remote_code=True` where
            this package is not installed. An adapter has none.
    """

    # Defaults of the paper
    learning_rate: float = field(
        default=5e-6, metadata={"help": "Initial learning rate of all but the thinking modules."}
    )
    adam_beta2: float = field(default=0.99, metadata={"help": "Beta2 of AdamW."})
    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up: steps, or below 1 a share of all steps."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    max_grad_norm: float = field(default=0.1, metadata={"help": "Gradient norm to clip to."})
    beta: float = field(default=0.005, metadata={"help": "Coefficient of the KL term to the reference model."})
    num_generations: int | None = field(default=4, metadata={"help": "Completions a prompt (the group size)."})
    temperature: float = field(default=0.5, metadata={"help": "Sampling temperature."})
    max_completion_length: int | None = field(default=1024, metadata={"help": "Limit of completion tokens."})
    disable_dropout: bool = field(
        default=True,
        metadata={"help": "Switch dropout off: the recorded states belong to one set of units, not to another."},
    )

    # Fields of HRPO
    max_prompt_length: int | None = field(
        default=1024, metadata={"help": "Longer training prompts are dropped and counted, never cut."}
    )
    use_rollout_engine: bool = field(
        default=True, metadata={"help": "Roll out with shared prompts and without the rows that have ended."}
    )
    rollout_max_rows: int | None = field(
        default=None, metadata={"help": "Completions that are decoded at the same time; bounds the memory."}
    )
    share_prompts_in_update: bool = field(
        default=True, metadata={"help": "Compute the prompt of a group once in the update too."}
    )
    update_max_tokens: int | None = field(
        default=8192, metadata={"help": "Most positions of a pass of the update with shared prompts."}
    )
    length_buckets: int | None = field(
        default=None,
        metadata={"help": "Parts of like length into which an update cuts its batch; by default one for 8 rows."},
    )
    vllm_engine_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of vllm.LLM that TRL has none for, as a dict or as JSON."}
    )
    lr_thinking_residual_gate: float | None = field(
        default=1e-4, metadata={"help": "Learning rate of the two gates of the thinking residual."}
    )
    lr_thinking_residual_Lambda: float | None = field(
        default=1e-3, metadata={"help": "Learning rate of Lambda, the decay of the thinking residual."}
    )
    lr_thinking_projection: float | None = field(
        default=1e-4, metadata={"help": "Learning rate of the thinking projection."}
    )
    lr_thinking_head: float | None = field(
        default=1e-4, metadata={"help": "Learning rate of the head that chooses whether a token is a thought."}
    )
    weight_decay_thinking_residual_Lambda: float = field(default=0.0, metadata={"help": "Weight decay of Lambda."})
    check_memory: bool = field(
        default=True, metadata={"help": "Refuse settings whose first step would not fit into the free memory."}
    )
    parity_check_steps: int = field(
        default=50, metadata={"help": "Optimizer steps between two parity checks; 0 switches them off."}
    )
    parity_tolerance: float | None = field(
        default=None,
        metadata={
            "help": "Parity gap that stops the run; by default 1e-3 (max) in fp32, 0.1 (mean) in half precision."
        },
    )
    train_thought_tokens: bool = field(
        default=False,
        metadata={"help": "Train the log-probabilities of thoughts whose token changes nothing that follows."},
    )
    density_epsilon: float | None = field(
        default=None, metadata={"help": "Clip of the ratio where a rollout drew more than the token."}
    )
    thought_pages: int = field(
        default=0, metadata={"help": "Completions shown token by token on a page for a rollout of each log."}
    )
    save_hub_code: bool = field(
        default=True, metadata={"help": "Save the model's code next to its weights for `trust_remote_code=True`."}
    )

    def __post_init__(self):
        resolve_bf16(self)
        super().__post_init__()
        if isinstance(self.vllm_engine_kwargs, str):
            self.vllm_engine_kwargs = json.loads(self.vllm_engine_kwargs)
        for name in (
            "lr_thinking_residual_gate",
            "lr_thinking_residual_Lambda",
            "lr_thinking_projection",
            "lr_thinking_head",
        ):
            rate = getattr(self, name)
            if rate is not None and rate < 0:
                raise ValueError(f"`{name}` must be at least 0 or None, got {rate}.")
        if self.parity_check_steps < 0:
            raise ValueError(f"`parity_check_steps` must be at least 0, got {self.parity_check_steps}.")
        if self.thought_pages < 0:
            raise ValueError(f"`thought_pages` must be at least 0, got {self.thought_pages}.")
        if self.parity_tolerance is not None and self.parity_tolerance <= 0:
            raise ValueError(f"`parity_tolerance` must be positive or None, got {self.parity_tolerance}.")
        if self.density_epsilon is not None and not self.density_epsilon > 0:
            raise ValueError(f"`density_epsilon` must be positive or None, got {self.density_epsilon}.")
        if self.density_epsilon is not None and self.importance_sampling_level != "token":
            raise ValueError(
                f"`density_epsilon={self.density_epsilon}` clips at single tokens, and "
                f"`importance_sampling_level={self.importance_sampling_level!r}` has one ratio for all. Leave one out."
            )
        for name in ("rollout_max_rows", "update_max_tokens", "length_buckets", "max_prompt_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1 or None, got {value}.")
