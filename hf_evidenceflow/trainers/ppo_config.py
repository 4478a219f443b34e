"""Arguments of [`PPOTrainer`]: the fields that GRPO does not have, and the usual values of PPO on language models."""

from dataclasses import dataclass, field, fields

from trl import GRPOConfig

from .precision import resolve_bf16


# They shape what PPO does in another way (advantages, loss), or need a rollout that was not tried with values
_OF_GRPO_ONLY = (
    *("loss_type", "scale_rewards", "multi_objective_aggregation", "importance_sampling_level", "delta"),
    *("top_entropy_quantile", "off_policy_mask_threshold", "use_bias_correction_kl", "use_adaptive_entropy"),
    *("use_vllm", "use_transformers_continuous_batching", "use_transformers_paged"),
)


@dataclass
class PPOConfig(GRPOConfig):
    r"""
    Configuration of [`PPOTrainer`]. Differs from [`~trl.GRPOConfig`] in the fields below; the others keep their
    meaning: `epsilon` and `epsilon_high` clip the ratio, `beta` is the coefficient of the KL penalty,
    `num_iterations` the epochs over a rollout, `generation_batch_size` the completions of a rollout, which are split
    into minibatches of `per_device_train_batch_size * gradient_accumulation_steps`.

    Parameters:
        num_generations (`int`, *optional*, defaults to `1`):
            Completions per prompt. PPO compares them with the values, not with each other, so that one is enough.
        num_iterations (`int`, *optional*, defaults to `4`):
            Epochs over a rollout.
        beta (`float`, *optional*, defaults to `0.05`):
            Coefficient of the KL penalty to the reference model; `0.0` needs no reference model.
        kl_in_reward (`bool`, *optional*, defaults to `True`):
            Whether each token's penalty (k1) is part of its reward; otherwise the loss holds the estimate k3.
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount of a token, in [0, 1].
        lam (`float`, *optional*, defaults to `0.95`):
            Lambda of the generalized advantage estimates, in [0, 1].
        vf_coef (`float`, *optional*, defaults to `0.1`):
            Weight of the value loss.
        cliprange_value (`float`, *optional*, defaults to `0.2`):
            Farthest that a value moves from that of the rollout; `inf` switches the clip off.
        whiten_rewards (`bool`, *optional*, defaults to `False`):
            Whether the rewards of the tokens get unit variance. Advantages always get zero mean and unit variance.
        use_rollout_engine, share_prompts_in_update, save_hub_code (`bool`, *optional*, default to `True`):
            As in [`HRPOConfig`]; what the shared update does not fit is computed with padding.
        update_max_tokens (`int`, *optional*, defaults to `8192`):
            As in [`HRPOConfig`].
    """

    num_generations: int | None = field(default=1, metadata={"help": "Completions per prompt."})
    num_iterations: int = field(default=4, metadata={"help": "Epochs over a rollout."})
    beta: float = field(default=0.05, metadata={"help": "Coefficient of the KL penalty to the reference model."})

    kl_in_reward: bool = field(
        default=True, metadata={"help": "Whether the KL penalty is part of the reward (k1), not of the loss (k3)."}
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount of a token."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of the generalized advantage estimates."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    cliprange_value: float = field(default=0.2, metadata={"help": "Farthest that a value moves from its old one."})
    whiten_rewards: bool = field(default=False, metadata={"help": "Whether token rewards get unit variance."})
    use_rollout_engine: bool = field(
        default=True, metadata={"help": "Roll out with shared prompts and without the rows that have ended."}
    )
    share_prompts_in_update: bool = field(
        default=True, metadata={"help": "Compute the update without padding, and the prompt of a group once."}
    )
    update_max_tokens: int | None = field(default=8192, metadata={"help": "Most positions of a pass of the update."})
    save_hub_code: bool = field(
        default=True, metadata={"help": "Save the model's code next to its weights for `trust_remote_code=True`."}
    )

    def __post_init__(self):
        resolve_bf16(self)
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {getattr(self, name)}.")
        if self.vf_coef < 0:
            raise ValueError(f"`vf_coef` must be at least 0, got {self.vf_coef}.")
        if self.cliprange_value <= 0:
            raise ValueError(
                f"`cliprange_value` must be positive, got {self.cliprange_value}. `inf` switches the clip off."
            )
        if self.update_max_tokens is not None and self.update_max_tokens < 1:
            raise ValueError(f"`update_max_tokens` must be at least 1 or None, got {self.update_max_tokens}.")
        defaults = {item.name: item.default for item in fields(GRPOConfig)}
        for name in _OF_GRPO_ONLY:
            if getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"`{name}={getattr(self, name)!r}` has no place in PPO. Leave it at {defaults[name]!r}, or use "
                    "GRPOTrainer."
                )
        # GRPO refuses a group of one, whose baseline would be the completion itself
        single, self.num_generations = self.num_generations == 1, max(self.num_generations, 2)
        try:
            super().__post_init__()
        finally:
            if single:
                self.num_generations = 1
