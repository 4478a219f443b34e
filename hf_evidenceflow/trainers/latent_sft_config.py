"""Arguments of [`LatentSFTTrainer`]: how the thoughts of a supervised run are made and what they are taught."""

from dataclasses import dataclass, field

from ..callbacks.latent_curriculum import LatentCurriculum
from ..models.thinking.latent_forward import LatentOptions
from .precision import DeviceSFTConfig


OBJECTIVES = ("soft_targets", "answer", "distill")


@dataclass
class LatentSFTConfig(DeviceSFTConfig):
    r"""
    Configuration of [`LatentSFTTrainer`]. Differs from [`~trl.SFTConfig`] in the fields below, in
    `gradient_checkpointing`, which is off since thoughts wait for each other, and in `remove_unused_columns`.

    Parameters:
        thinking_mode (`str`, *optional*):
            The way of thinking that is trained, a row of [`THINKING_METHODS`]; `None`: that of the model. With
            `"none"` the model's own tokens are fed back, and `"pause"` feeds placeholders: the controls.
        thinking_count (`int`, *optional*):
            Number of thoughts that the checkpoint decodes with. `None`: for `soft_targets` as many as the rows have in
            modes that need a fixed number, else until the answer marker; for `answer` that of the last stage. Given
            with `answer`, it is the most thoughts of a stage: with `latent_curriculum=[0, 1, 2, 3, 99]`, two tokens a
            step, and 6, the last stage has no steps left and 6 thoughts, as Coconut's on GSM8K.
        thinking_token_policy (`str`, *optional*):
            Token that a thought has, `"sample"`, `"argmax"` or `"placeholder"`; `None`: the mode's own.
        placeholder_token (`str`, *optional*):
            The token that stands for a thought without one. `None`: the unknown or the padding token, if it ends no
            text.
        thinking_settings (`dict`, *optional*):
            Further fields of the thinking config for a model that is loaded here, such as `{"thinking_residual_r_min":
            0.05, "thinking_residual_r_max": 0.2}`.
        objective (`str`, *optional*, defaults to `"soft_targets"`):
            `"soft_targets"` (CoT2, arXiv 2505.23648): KL of each thought to its target distribution, and cross-entropy
            of the text after them. `"answer"` (Coconut, arXiv 2412.06769): cross-entropy of what is left of the text
            when the first steps have become thoughts. `"distill"` (CODI, arXiv 2502.21074): the same weights write the
            discrete chain and think; the hidden states before the answer are drawn together.
        soft_target_weight, distill_weight (`float`, *optional*, default to `1.0`):
            Weights of the KL of a thought next to a token's cross-entropy, and of the distance of hidden states.
        teacher_forcing_steps (`float`, *optional*, defaults to `0`):
            Optimizer steps, or below 1 a share of all, in which target states are fed in one parallel pass; then the
            model feeds itself. For `soft_targets` in modes whose states are mean embeddings.
        latent_curriculum (`list[int]`, *optional*):
            For each stage the number of first steps that are thoughts. `None`: all steps, in one stage. `[0]` trains
            on the discrete chain.
        latent_steps_per_stage (`int`, *optional*), latent_until_loss (`float`, *optional*):
            Optimizer steps of a stage, or the logged loss at which it ends. By default the steps are split evenly.
        latent_tokens_per_step (`int`, *optional*, defaults to `1`):
            Thoughts in the place of a step, for `answer`.
        earlier_stage_share (`float`, *optional*, defaults to `0`):
            Probability that a row is trained as in an earlier stage, drawn at random.
        reset_optimizer (`bool`, *optional*, defaults to `False`):
            Forget the optimizer's moments at the beginning of a stage.
        latent_backprop (`int`, *optional*):
            Thoughts through which a gradient flows back; `None`: all.
        latent_iterations (`int`, *optional*):
            Jacobi iterations, all thoughts at once, in the place of one pass a thought.
        answer_template (`str`, *optional*, defaults to `"#### {answer}"`), step_separator (`str`, *optional*, defaults
        to a line break):
            How the answer is written, and what follows each step.
        lr_thinking_residual_gate, lr_thinking_residual_Lambda, lr_thinking_projection (`float`, *optional*):
            Learning rates of the thinking modules; `None`: `learning_rate`.
        save_hub_code (`bool`, *optional*, defaults to `True`):
            As in [`HRPOConfig`].
    """

    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Not possible while thoughts are computed one after the other."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Would remove the thoughts of the rows."})

    thinking_mode: str | None = field(default=None, metadata={"help": "Way of thinking; by default the model's."})
    thinking_count: int | None = field(default=None, metadata={"help": "Fixed number of thoughts in decoding."})
    thinking_token_policy: str | None = field(
        default=None, metadata={"help": "Token of a thought: sample, argmax or placeholder."}
    )
    placeholder_token: str | None = field(default=None, metadata={"help": "Token that stands for a thought."})
    thinking_settings: dict | str | None = field(
        default=None, metadata={"help": "Further fields of the thinking config, as JSON."}
    )
    objective: str = field(default="soft_targets", metadata={"help": "soft_targets, answer or distill."})
    soft_target_weight: float = field(default=1.0, metadata={"help": "Weight of a thought's KL."})
    distill_weight: float = field(default=1.0, metadata={"help": "Weight of the distance of hidden states."})
    teacher_forcing_steps: float = field(
        default=0.0, metadata={"help": "Steps, or below 1 a share of them, that feed target states."}
    )
    latent_curriculum: list[int] | None = field(
        default=None, metadata={"help": "Number of steps that are thoughts, for each stage."}
    )
    latent_steps_per_stage: int | None = field(default=None, metadata={"help": "Optimizer steps of a stage."})
    latent_until_loss: float | None = field(default=None, metadata={"help": "Logged loss that ends a stage."})
    latent_tokens_per_step: int = field(default=1, metadata={"help": "Thoughts in the place of a step."})
    earlier_stage_share: float = field(default=0.0, metadata={"help": "Share of rows of earlier stages."})
    reset_optimizer: bool = field(default=False, metadata={"help": "Reset the optimizer at each stage."})
    latent_backprop: int | None = field(
        default=None, metadata={"help": "Thoughts through which a gradient flows back; by default all."}
    )
    latent_iterations: int | None = field(
        default=None, metadata={"help": "Jacobi iterations in the place of one pass a thought."}
    )
    answer_template: str = field(default="#### {answer}", metadata={"help": "How the answer is written."})
    step_separator: str = field(default="\n", metadata={"help": "What follows each step."})
    lr_thinking_residual_gate: float | None = field(default=None, metadata={"help": "Learning rate of the gates."})
    lr_thinking_residual_Lambda: float | None = field(default=None, metadata={"help": "Learning rate of Lambda."})
    lr_thinking_projection: float | None = field(
        default=None, metadata={"help": "Learning rate of the thinking projection."}
    )
    save_hub_code: bool = field(
        default=True, metadata={"help": "Save the model's code next to its weights for `trust_remote_code=True`."}
    )

    _VALID_DICT_FIELDS = [*DeviceSFTConfig._VALID_DICT_FIELDS, "thinking_settings"]

    def __post_init__(self):
        super().__post_init__()
        if self.objective not in OBJECTIVES:
            raise ValueError(f"`objective` must be one of {', '.join(map(repr, OBJECTIVES))}, got {self.objective!r}.")
        if self.answer_template.count("{answer}") != 1:
            raise ValueError(f"`answer_template` must contain `{{answer}}` once, got {self.answer_template!r}.")
        if self.gradient_checkpointing:
            raise ValueError(
                "`gradient_checkpointing=True` does not go with thoughts that wait for each other. Set it to False, "
                "and bound memory with smaller batches."
            )
        if self.packing or self.padding_free:
            raise ValueError("`packing` and `padding_free` have no place for thoughts. Set them to False.")
        if self.loss_type != "nll" or self.label_smoothing_factor:
            raise ValueError(
                "`objective` says what thoughts are taught, and the text after them has the plain cross-entropy. "
                f"Leave out `loss_type={self.loss_type!r}` and `label_smoothing_factor={self.label_smoothing_factor}`."
            )
        if self.teacher_forcing_steps < 0:
            raise ValueError(f"`teacher_forcing_steps` must be at least 0, got {self.teacher_forcing_steps}.")
        if self.teacher_forcing_steps and self.objective != "soft_targets":
            raise ValueError(
                f"`teacher_forcing_steps` needs targets, and `objective={self.objective!r}` has none. Set it to 0."
            )
        if not 0 <= self.earlier_stage_share < 1:
            raise ValueError(f"`earlier_stage_share` must be in [0, 1), got {self.earlier_stage_share}.")
        if self.latent_tokens_per_step < 1:
            raise ValueError(f"`latent_tokens_per_step` must be at least 1, got {self.latent_tokens_per_step}.")
        if self.latent_tokens_per_step > 1 and self.objective != "answer":
            raise ValueError(
                f"`latent_tokens_per_step={self.latent_tokens_per_step}` is for `objective='answer'`, got "
                f"{self.objective!r}. Leave it out."
            )
        self._check_curriculum()
        if self.objective == "distill" and not self.thinking_count:
            raise ValueError("`objective='distill'` needs `thinking_count`, the number of thoughts.")
        if self.remove_unused_columns:
            raise ValueError("`remove_unused_columns=True` would remove the thoughts of the rows. Set it to False.")
        self.dataset_kwargs = {**(self.dataset_kwargs or {}), "skip_prepare_dataset": True}  # rows are read by us
        self.latent_options()

    def _check_curriculum(self):
        stages = self.latent_curriculum
        if stages is not None and self.objective == "distill":
            raise ValueError(f"`objective='distill'` has no stages, got `latent_curriculum={stages}`. Leave it out.")
        LatentCurriculum([0] if stages is None else stages, self.latent_steps_per_stage, self.latent_until_loss)
        for name in ("latent_steps_per_stage", "latent_until_loss", "earlier_stage_share", "reset_optimizer"):
            if stages is None and getattr(self, name):
                raise ValueError(
                    f"`{name}={getattr(self, name)}` needs a `latent_curriculum`. Give one, or leave it out."
                )

    def latent_options(self) -> LatentOptions:
        """The settings of the forward pass."""
        return LatentOptions(self.latent_backprop, self.latent_iterations)
