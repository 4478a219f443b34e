"""HRPO, hybrid latent reasoning by reinforcement learning (arXiv 2505.18454), on TRL's GRPO.

What differs from GRPO: the rollout records the thinking states, they ride with the batch, and each policy
log-probability is computed with the same fused inputs that the rollout had. The reference log-probabilities use plain
tokens, unless the reference is a thinking checkpoint itself.

Shapes: B rows, C completion tokens, H hidden size.
"""

import math
import textwrap
from contextlib import nullcontext

import torch
from accelerate.utils import is_peft_model
from trl import GRPOTrainer
from trl.trainer.callbacks import SyncRefModelCallback

from ..callbacks.memory_check import MemoryCheck
from ..callbacks.parameter_group_watch import ParameterGroupWatch
from ..callbacks.rollout_guards import RolloutGuard
from ..callbacks.thought_pages import ThoughtPages
from ..models.thinking.answer_marker import MarkerAutomaton
from ..peft.adapter_file import read_adapter
from ..rollouts.engine import RolloutEngine
from ..rollouts.generation_settings import own_generation_config
from ..rollouts.progress import shows_progress
from ..run_folder.resumable_trainer import ResumableTrainerMixin
from .bucketed_update import BucketedUpdateMixin
from .data_checks import check_data, drop_long_prompts
from .drawn_densities import PREFIX, DrawnDensitiesMixin, check_draws, fit_draws, refuse_sharded
from .generation_kwargs import StopStringsMixin, check_generation_kwargs
from .hrpo_config import HRPOConfig
from .hrpo_setup import (
    prepare_thinking_parameters,
    refuse_unsupported,
    shard_thinking_modules,
    thinking_config,
    warn_of_settings,
    with_thinking_modules,
)
from .hub_code_mixin import HubCodeMixin
from .idle_thoughts import idle_thoughts, leave_out, trains_thoughts
from .length_buckets import fit_columns
from .model_card_mixins import RewardModelCardMixin
from .parity_check import ParityCheckMixin
from .phase_clock import PhaseClockMixin
from .policy import (
    SyncReferenceCallback,
    default_args,
    is_reference,
    load_policy,
    load_policy_tokenizer,
    plain_init_kwargs,
    reference_thinks,
)
from .saved_rollouts import SavedRolloutsMixin
from .thinking_groups import thinking_group_specs
from .thinking_metrics import ProjectionMetrics, masked_mean
from .thinking_rollouts import ThinkingRolloutsMixin
from .thinking_trainer_mixin import ThinkingTrainerMixin
from .update_passes import UpdatePassesMixin
from .vllm_rollouts import thinking_generation


class HRPOTrainer(
    ThinkingTrainerMixin,
    RewardModelCardMixin,
    HubCodeMixin,
    ParityCheckMixin,
    DrawnDensitiesMixin,
    UpdatePassesMixin,
    BucketedUpdateMixin,
    PhaseClockMixin,
    ResumableTrainerMixin,
    SavedRolloutsMixin,
    ThinkingRolloutsMixin,
    StopStringsMixin,
    GRPOTrainer,
):
    """
    Trainer of hybrid latent reasoning (HRPO). Takes the arguments of [`~trl.GRPOTrainer`].

    Example:

    ```python
    >>> from hf_evidenceflow import HRPOConfig, HRPOTrainer
    >>> from hf_evidenceflow.tasks import gsm8k_reward, load_gsm8k

    >>> trainer = HRPOTrainer(
    ...     model="Qwen/Qwen2.5-1.5B-Instruct",
    ...     reward_funcs=gsm8k_reward,
    ...     args=HRPOConfig("qwen-hrpo"),
    ...     train_dataset=load_gsm8k(),
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Hub name or folder of a plain or thinking checkpoint, a thinking model, or a PEFT model around one.
        args ([`HRPOConfig`], *optional*):
            Arguments.
        peft_config ([`~peft.PeftConfig`], *optional*):
            The thinking modules are added to its `modules_to_save`, and all linear layers to its `target_modules` if
            it has none.
        train_dataset and what follows:
            As in [`~trl.GRPOTrainer`]. With `tools` or an `environment_factory` each turn thinks, and reads the tokens
            of earlier turns with their states. `rollout_func` is refused while thinking.
    """

    kept_attributes = ("_metrics", "_logs", "_last_parity_step")

    _tag_names = ["trl", "hrpo", "hf_evidenceflow"]
    _name = "HRPO"
    _paper = {
        "title": "Hybrid Latent Reasoning via Reinforcement Learning",
        "id": "2505.18454",
        "citation": textwrap.dedent("""\
            @article{yue2025hybrid,
                title        = {{Hybrid Latent Reasoning via Reinforcement Learning}},
                author       = {Zhenrui Yue and Bowen Jin and Huimin Zeng and Honglei Zhuang and Zhen Qin
                                and Jinsung Yoon and Lanyu Shang and Jiawei Han and Dong Wang},
                year         = 2025,
                eprint       = {arXiv:2505.18454},
            }"""),
    }

    def __init__(
        self,
        model,
        reward_funcs=None,
        args=None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        reward_processing_classes=None,
        callbacks=None,
        optimizers=(None, None),
        quantization_config=None,
        peft_config=None,
        tools=None,
        rollout_func=None,
        environment_factory=None,
    ):
        args = default_args(HRPOConfig, "HRPO", model) if args is None else args
        self._thinking = None  # (states [B, C, H], mask [B, C]) of the batch at hand
        self._expected_logps = self._kl_batch = None
        engine = RolloutEngine(args.rollout_max_rows, progress=shows_progress(args))
        self.rollout_engine = engine if args.use_rollout_engine else None

        config = thinking_config(model, args.model_init_kwargs)
        self.thinking_mode, self._thinking_method = config.thinking_mode, config.thinking_method
        self._trains_thoughts = trains_thoughts(args, config)
        is_path = isinstance(model, str)
        is_adapted = read_adapter(model) is not None if is_path else is_peft_model(model)
        has_adapter = peft_config is not None or is_adapted
        rollouts = {"tools": tools, "environment_factory": environment_factory, "rollout_func": rollout_func}
        refuse_unsupported(args, config, model, has_adapter, rollouts)
        check_generation_kwargs(args, self.thinking_mode)
        check_draws(args, config)
        if peft_config is not None:
            peft_config = with_thinking_modules(peft_config, config.thinking_method)
        name = model if is_path else config.name_or_path
        if name and processing_class is None:
            processing_class = load_policy_tokenizer(name, args)
        if is_path:
            model, quantization_config = load_policy(model, args, quantization_config), None
        with plain_init_kwargs(args) if is_path else nullcontext(), thinking_generation(args, config.thinking_mode):
            super().__init__(
                model=model,
                reward_funcs=reward_funcs,
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                reward_processing_classes=reward_processing_classes,
                callbacks=callbacks,
                optimizers=optimizers,
                quantization_config=quantization_config,
                peft_config=peft_config,
                **rollouts,
            )
        if args.sync_ref_model:
            self.remove_callback(SyncRefModelCallback)
            self.add_callback(SyncReferenceCallback(self.ref_model, self.accelerator))
        if not self.use_vllm:
            # TRL's takes what it leaves open from the model's generation config
            self.generation_config = own_generation_config(self.model, **self.generation_kwargs, disable_compile=True)
        check_data(self)
        self._prepare_thinking(config)
        # An environment writes the prompts
        known = self.train_dataset is not None and self.environment_factories is None
        if args.max_prompt_length is not None and known:
            rendering = self.chat_template_kwargs | ({"tools": self.tools} if self.tools else {})
            self.train_dataset = drop_long_prompts(
                self.train_dataset, self._tokenizer, args.max_prompt_length, rendering
            )
        self.add_callback(RolloutGuard())
        self.thought_pages = ThoughtPages(self) if args.thought_pages else None
        if self.thought_pages is not None:
            self.add_callback(self.thought_pages)
        self.memory_check = MemoryCheck(self)
        self.add_callback(self.memory_check)
        self._prepare_generation_kwargs()
        warn_of_settings(self)

    def _prepare_thinking(self, config):
        args = self.args
        prepare_thinking_parameters(self.model, config.thinking_method)
        refuse_sharded(self, config)
        shard_thinking_modules(self.model, self.accelerator)
        self._reference_thinks = reference_thinks(self, self.thinking_mode)
        if config.ends_by_marker:
            # Fails now, not in the first rollout
            MarkerAutomaton.for_tokenizer(self._tokenizer, config.thinking_answer_start, self.accelerator.device)
        self.parameter_specs = thinking_group_specs(
            config.thinking_method,
            lr_gate=args.lr_thinking_residual_gate,
            lr_Lambda=args.lr_thinking_residual_Lambda,
            lr_projection=args.lr_thinking_projection,
            lr_head=args.lr_thinking_head,
            weight_decay_Lambda=args.weight_decay_thinking_residual_Lambda,
        )
        if self.parameter_specs:
            self.add_callback(ParameterGroupWatch())
        self._projection_metrics = None
        if config.thinking_method.source == "projection" and not (
            self.is_fsdp_enabled or self.accelerator.state.deepspeed_plugin
        ):
            # They read whole weights, which a process does not have where the weights are sharded
            self._projection_metrics = ProjectionMetrics(self.model)

    # Rollout

    def _generate_and_score_completions(self, inputs):
        """
        Differs from GRPOTrainer in what rides with the batch: `thinking_states`, `thinking_mask`, for a check
        `rollout_logps`, what was drawn besides tokens, and a `tool_mask` that leaves idle thoughts out.
        """
        self._thinking = self._drawn = self._expected_logps = None
        output = super()._generate_and_score_completions(inputs)
        if self._thinking is not None:
            count = output["completion_ids"].shape[1]
            states, mask = self._thinking
            output["thinking_states"] = fit_columns(states, count)
            output["thinking_mask"] = fit_columns(mask, count)
            if not self._trains_thoughts:
                idle = idle_thoughts(output["thinking_mask"], output["completion_ids"], self.eos_token_ids)
                if self._expected_logps is not None:
                    self._expected_logps = fit_columns(self._expected_logps, count).masked_fill(idle, 0.0)
                if self._drawn is not None:
                    idle = idle & ~self._counted_draws(output["completion_mask"])[0]
                leave_out(output, idle, self.accelerator)
            if self._drawn is not None:
                output |= {PREFIX + name: value for name, value in fit_draws(self._drawn, count).items()}
            if self._expected_logps is not None:
                output["rollout_logps"] = fit_columns(self._expected_logps, count)
                # Rows of one batch, so that it survives splitting
                output["rollout_step"] = torch.full((len(states),), self.state.global_step)
            if self.thought_pages is not None:
                self.thought_pages.write(inputs, output)
        self._thinking = self._drawn = self._expected_logps = None
        return output

    # Log-probabilities

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        """Differs from the parent in 0 for idle thoughts, in what was drawn besides tokens, and in the log."""
        logps, entropies, aux_loss = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )
        if self._thinking is not None:
            mask = fit_columns(self._thinking[1], logits_to_keep)
            if entropies is not None:
                entropy = masked_mean(entropies, mask, self.accelerator)
                self._metrics["train" if self.model.training else "eval"]["thinking/entropy"].append(entropy)
            if not self._trains_thoughts:
                # A forced token may be so unlikely that its ratio to the reference is no number
                idle = idle_thoughts(mask, input_ids[:, -logits_to_keep:], self.eos_token_ids)
                logps = logps.masked_fill(idle, 0.0)
            if self._log_density is not None:
                logps = logps + self._log_density
                if self._kl_batch is not None:  # the KL term is that of the tokens
                    self._kl_batch["ref_per_token_logps"] = self._kl_batch["ref_per_token_logps"] + self._log_density
        return logps, entropies, aux_loss

    def _thinking_of(self, model):
        """Thinking states and mask of the batch at hand for a pass of a model, or `None`."""
        return self._thinking if self._reference_thinks or not is_reference(self, model) else None

    def _compute_loss(self, model, inputs):
        """Differs from GRPOTrainer in handing the batch's thinking states on, and in the parity check."""
        if "thinking_states" not in inputs:
            return super()._compute_loss(model, inputs)
        self._thinking, counted = (inputs["thinking_states"], inputs["thinking_mask"]), None
        if PREFIX + "log_density" in inputs:
            inputs = dict(inputs)
            self._drawn = {name.removeprefix(PREFIX): inputs[name] for name in inputs if name.startswith(PREFIX)}
            counted = self._counted_draws(inputs["completion_mask"])[0]
        try:
            if "rollout_logps" in inputs and int(inputs["rollout_step"][0]) == self.state.global_step:
                self._check_parity(model, inputs)
            if self._drawn is not None and self.beta:
                self._kl_batch = inputs
            with self._own_clip(counted):
                loss = super()._compute_loss(model, inputs)
            self._replace_means_of_nothing()
            return loss
        finally:
            self._thinking = self._drawn = self._kl_batch = None

    def _replace_means_of_nothing(self):
        """Where each token of a batch is an idle thought, GRPOTrainer logs a share of clipped tokens of 0 / 0."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name in ("clip_ratio/low_min", "clip_ratio/high_max"):
            if metrics[name] and math.isnan(metrics[name][-1]):
                metrics[name][-1] = 0.0

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Differs from GRPOTrainer in measuring the projection's gradient, before clipping."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._projection_metrics is not None and self.accelerator.sync_gradients:
            for name, value in self._projection_metrics.measure_training().items():
                self._metrics["train"][f"thinking/{name}"].append(value)
        return loss

    # Checkpoints

    def _rollout_settings(self):
        """Differs from GRPO's in the thinking."""
        thinking = {"thinking_mode": self.thinking_mode, "train_thought_tokens": str(self._trains_thoughts)}
        return {**super()._rollout_settings(), **thinking}
