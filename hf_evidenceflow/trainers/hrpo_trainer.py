"""HRPO, hybrid latent reasoning by reinforcement learning (arXiv 2505.18454), on TRL's GRPO.

What differs from GRPO: the rollout records the thinking states, they ride with the batch, and each policy
log-probability is computed with the same fused inputs that the rollout had. The reference log-probabilities use plain
tokens.

Shapes: B rows, C completion tokens, H hidden size.
"""

import functools
import textwrap
import time
from contextlib import nullcontext

import torch
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from datasets import Dataset
from peft.tuners.tuners_utils import BaseTunerLayer
from trl import GRPOTrainer
from trl.trainer.callbacks import SyncRefModelCallback
from trl.trainer.utils import get_config_model_id

from ..callbacks.rollout_guards import RolloutGuard
from ..data.tokenizer_loading import load_tokenizer
from ..models.thinking.answer_marker import MarkerAutomaton
from ..models.thinking.generation_thinking import collect_thinking
from ..rollouts.engine import RolloutEngine
from ..rollouts.generation_settings import own_generation_config
from ..run_folder.resumable_trainer import ResumableTrainerMixin
from ..tasks.prompts import filter_long_prompts, prompt_length
from .data_checks import check_data, check_prompt
from .generation_kwargs import StopStringsMixin, check_generation_kwargs
from .hrpo_config import HRPOConfig
from .hrpo_setup import (
    prepare_thinking_parameters,
    refuse_unsupported,
    shard_thinking_modules,
    thinking_config,
    with_thinking_modules,
)
from .hub_code_mixin import HubCodeMixin
from .length_buckets import join_buckets, length_buckets
from .model_card_mixins import RewardModelCardMixin
from .parameter_groups import ParameterGroupWatch, apply_parameter_groups
from .policy import SyncReferenceCallback, load_policy, plain_init_kwargs
from .saved_rollouts import SavedRolloutsMixin
from .thinking_groups import thinking_group_specs
from .thinking_metrics import (
    ProjectionMetrics,
    latent_weights,
    masked_mean,
    parity_gap,
    rollout_metrics,
    tokens_per_second,
)


logger = get_logger(__name__)

_ROWS_A_BUCKET = 8


class HRPOTrainer(
    RewardModelCardMixin, HubCodeMixin, ResumableTrainerMixin, SavedRolloutsMixin, StopStringsMixin, GRPOTrainer
):
    """
    Trainer of hybrid latent reasoning (HRPO). Takes the arguments of [`~trl.GRPOTrainer`].

    Example:

    ```python
    >>> from hf_evidenceflow import HRPOConfig, HRPOTrainer
    >>> from hf_evidenceflow.data import load_gsm8k
    >>> from hf_evidenceflow.rewards import gsm8k_reward

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
            The thinking modules are added to its `modules_to_save`, and the paper's layers to its `target_modules` if
            it has none.
        train_dataset and what follows:
            As in [`~trl.GRPOTrainer`]. `tools`, `environment_factory` and `rollout_func` are refused while thinking.
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
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = HRPOConfig(f"{name.split('/')[-1]}-HRPO")
        self._thinking = None  # (states [B, C, H], mask [B, C]) of the batch at hand
        self._expected_logps = None
        self._last_parity_step = None
        self.rollout_engine = RolloutEngine(args.rollout_max_rows) if args.use_rollout_engine else None

        config = thinking_config(model, args.model_init_kwargs)
        self.thinking_mode = config.thinking_mode
        has_adapter = peft_config is not None or (not isinstance(model, str) and is_peft_model(model))
        rollouts = {"tools": tools, "environment_factory": environment_factory, "rollout_func": rollout_func}
        refuse_unsupported(args, config, model, has_adapter, rollouts)
        check_generation_kwargs(args, self.thinking_mode)
        if peft_config is not None:
            peft_config = with_thinking_modules(peft_config, self.thinking_mode)
        name = model if isinstance(model, str) else config.name_or_path
        if name and processing_class is None:
            # TRL's AutoProcessor would take a tokenizer of the model's family, whatever was saved
            processing_class = load_tokenizer(
                name,
                revision=(args.model_init_kwargs or {}).get("revision"),
                trust_remote_code=args.trust_remote_code,
                truncation_side="left",
                padding_side="left",
            )
        is_path = isinstance(model, str)
        if is_path:
            model, quantization_config = load_policy(model, args, quantization_config), None
        with plain_init_kwargs(args) if is_path else nullcontext():
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
        prepare_thinking_parameters(self.model, self.thinking_mode)
        shard_thinking_modules(self.model, self.accelerator)
        if config.thinking_answer_start is not None and self.thinking_mode != "none":
            # Fails now, not in the first rollout
            MarkerAutomaton.for_tokenizer(self._tokenizer, config.thinking_answer_start, self.accelerator.device)
        if args.max_prompt_length is not None and self.train_dataset is not None:
            self._drop_long_prompts()
        self.parameter_specs = thinking_group_specs(
            self.thinking_mode,
            lr_gate=args.lr_thinking_residual_gate,
            lr_Lambda=args.lr_thinking_residual_Lambda,
            lr_projection=args.lr_thinking_projection,
            weight_decay_Lambda=args.weight_decay_thinking_residual_Lambda,
        )
        if self.parameter_specs:
            self.add_callback(ParameterGroupWatch())
        self.add_callback(RolloutGuard())
        self._prepare_generation_kwargs()
        self._warn_of_settings()
        self._projection_metrics = None
        if self.thinking_mode == "projection" and not (
            self.is_fsdp_enabled or self.accelerator.state.deepspeed_plugin
        ):
            # They read whole weights, which a process does not have where the weights are sharded
            self._projection_metrics = ProjectionMetrics(self.model)

    def _warn_of_settings(self):
        if self._tokenizer.pad_token_id in self.eos_token_ids:
            logger.warning(
                f"The padding token is the end of sequence ({self._tokenizer.pad_token!r}). Rollouts are cut at the "
                "first one, so training here is right, but losses that leave out padding would never teach the model "
                "to end. Give the tokenizer a padding token of its own."
            )
        if (self.args.generation_kwargs or {}).get("use_cache") is False:
            logger.warning(
                "`use_cache=False` in `generation_kwargs`: each token of a rollout computes the whole text again. "
                "Leave it out."
            )

    def _drop_long_prompts(self):
        limit = self.args.max_prompt_length
        if not isinstance(self.train_dataset, Dataset):
            # A stream can't be counted beforehand
            self.train_dataset = self.train_dataset.filter(self._is_short)
            return
        self.train_dataset, dropped = filter_long_prompts(
            self.train_dataset, self._tokenizer, limit, self.chat_template_kwargs
        )
        if dropped:
            logger.warning(
                f"Dropped {dropped} of {dropped + len(self.train_dataset)} training prompts with more than "
                f"`max_prompt_length={limit}` tokens."
            )

    def _is_short(self, row):
        check_prompt(row["prompt"], self._tokenizer, self.chat_template_kwargs)
        length = prompt_length(row["prompt"], self._tokenizer, self.chat_template_kwargs)
        return length <= self.args.max_prompt_length

    def create_optimizer(self, model=None):
        """Differs from GRPOTrainer in the learning rates of the thinking modules."""
        new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if new and self.parameter_specs:
            apply_parameter_groups(
                optimizer, (self.model if model is None else model).named_parameters(), self.parameter_specs
            )
        return optimizer

    # Rollout

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, **kwargs):
        """Differs from GRPOTrainer in the decoding loop, and in recording the thinking states of the rollout."""
        every = self.args.parity_check_steps
        check = every and self.model.training
        if check and self._last_parity_step is not None:
            check = self.state.global_step - self._last_parity_step >= every
        start = time.perf_counter()
        with collect_thinking(
            self._tokenizer, self.temperature if check else None, engine=self.rollout_engine
        ) as rollouts:
            completion_ids, logps = super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, **kwargs
            )
        tokens = sum(map(len, completion_ids))
        mode = "train" if self.model.training else "eval"
        speed = tokens_per_second(tokens, time.perf_counter() - start, self.accelerator)
        self._metrics[mode]["rollout/tokens_per_second"].append(speed)
        if not rollouts and self.thinking_mode != "none":
            raise RuntimeError(
                f"The rollout recorded no thinking states (`thinking_mode={self.thinking_mode!r}`): something "
                "generates around the model's own `generate`, and training would go on without thinking. Take it off "
                "the model, or set the model's `thinking_mode` to 'none'."
            )
        if rollouts:
            rollout = rollouts[0]
            if check:
                self._last_parity_step = self.state.global_step
            self._expected_logps = rollout.logps
            self._thinking = rollout.states, rollout.mask
            self._log_completion_extra("latent_weight", latent_weights(rollout, completion_ids))
            metrics = rollout_metrics(rollout, tokens, self.accelerator)
            if self._projection_metrics is not None:
                base = self.accelerator.unwrap_model(self.model)
                metrics |= self._projection_metrics.measure(base, rollout, self.temperature, self.accelerator)
            for name, value in metrics.items():
                self._metrics[mode][f"thinking/{name}"].append(value)
        return completion_ids, logps

    def _generate_and_score_completions(self, inputs):
        """
        Differs from GRPOTrainer in what rides with the batch: `thinking_states`, `thinking_mask`, and for a check
        `rollout_logps`.
        """
        self._thinking = self._expected_logps = None
        output = super()._generate_and_score_completions(inputs)
        if self._thinking is not None:
            count = output["completion_ids"].shape[1]
            states, mask = self._thinking
            output["thinking_states"] = _fit(states, count)
            output["thinking_mask"] = _fit(mask, count)
            if self._expected_logps is not None:
                output["rollout_logps"] = _fit(self._expected_logps, count)
                # Rows of one batch, so that it survives splitting
                output["rollout_step"] = torch.full((len(states),), self.state.global_step)
        self._thinking = self._expected_logps = None
        return output

    # Log-probabilities

    def _is_reference(self, model):
        if model is self.ref_model:
            return True
        model = self.accelerator.unwrap_model(model)
        if not is_peft_model(model):
            return False
        layer = next(module for module in model.modules() if isinstance(module, BaseTunerLayer))
        return layer.disable_adapters or "ref" in layer.active_adapters

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, **kwargs
    ):
        """
        Differs from GRPOTrainer in the inputs of the policy, completion tokens being fused with the states of the
        rollout, and in computing rows of like length together, without the padding of longer ones.
        """
        count = self.args.length_buckets or -(-len(input_ids) // _ROWS_A_BUCKET)
        if batch_size is not None:
            count = max(count, -(-len(input_ids) // batch_size))
        buckets = length_buckets(attention_mask, logits_to_keep, count)
        thinking = None if self._is_reference(model) else self._thinking
        results = []
        for bucket in buckets:
            policy = model
            if thinking is not None:
                states, mask = (_fit(tensor, bucket.completion_columns)[bucket.rows] for tensor in thinking)
                policy = functools.partial(model, thinking_states=states, thinking_mask=mask)
            ids, attention = (tensor[bucket.rows, bucket.columns] for tensor in (input_ids, attention_mask))
            results.append(
                super()._get_per_token_logps_and_entropies(policy, ids, attention, bucket.completion_columns, **kwargs)
            )
        logps, entropies, aux_losses = zip(*results)
        logps = join_buckets(buckets, logps, logits_to_keep)
        entropies = None if entropies[0] is None else join_buckets(buckets, entropies, logits_to_keep)
        if thinking is not None and entropies is not None:
            entropy = masked_mean(entropies, _fit(thinking[1], logits_to_keep), self.accelerator)
            self._metrics["train" if self.model.training else "eval"]["thinking/entropy"].append(entropy)
        return logps, entropies, None if aux_losses[0] is None else torch.stack(aux_losses).mean()

    def _compute_loss(self, model, inputs):
        """Differs from GRPOTrainer in handing the batch's thinking states on, and in the parity check."""
        if "thinking_states" not in inputs:
            return super()._compute_loss(model, inputs)
        self._thinking = inputs["thinking_states"], inputs["thinking_mask"]
        try:
            if "rollout_logps" in inputs and int(inputs["rollout_step"][0]) == self.state.global_step:
                self._check_parity(model, inputs)
            return super()._compute_loss(model, inputs)
        finally:
            self._thinking = None

    def _check_parity(self, model, inputs):
        with torch.no_grad():
            logps, _, _ = self._get_per_token_logps_and_entropies(
                model,
                torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
                torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
                inputs["completion_ids"].shape[1],
            )
        mean, largest = parity_gap(logps, inputs["rollout_logps"], inputs["completion_mask"], self.accelerator)
        self._metrics["train"]["thinking/parity_gap"].append(largest)
        self._metrics["train"]["thinking/parity_gap_mean"].append(mean)
        # Not `model.dtype`: with a head in fp32 that may be the head's
        half = self.accelerator.mixed_precision != "no" or any(
            parameter.dtype in (torch.bfloat16, torch.float16) for parameter in self.model.parameters()
        )
        kind, gap, tolerance = ("mean", mean, 2e-2) if half else ("largest", largest, 1e-3)
        tolerance = tolerance if self.args.parity_tolerance is None else self.args.parity_tolerance
        if not gap <= tolerance:
            raise RuntimeError(
                f"Parity check failed at step {self.state.global_step}: the {kind} gap between the log-probabilities "
                f"of the rollout and of the training forward is {gap:.3g}, beyond {tolerance:.3g} "
                f"({self.accelerator.mixed_precision=}, model in {self.model.dtype}). The policy gradient would be "
                "wrong. Something changes the model or its inputs between the two passes (dropout, a forward hook, "
                "another attention kernel); or raise `parity_tolerance` if the gap is rounding."
            )

    @property
    def last_samples(self) -> dict[str, list]:
        """
        Prompts, completions and rewards (one list a reward function) of the last rollout, all processes together.
        """
        rewards = {name: list(values) for name, values in self._logs["rewards"].items()}
        return {
            "prompts": list(self._logs["prompt"]),
            "completions": list(self._logs["completion"]),
            "rewards": rewards,
        }

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Differs from GRPOTrainer in measuring the projection's gradient, before clipping."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._projection_metrics is not None and self.accelerator.sync_gradients:
            for name, value in self._projection_metrics.measure_training().items():
                self._metrics["train"][f"thinking/{name}"].append(value)
        return loss

    # Checkpoints

    def _save(self, output_dir=None, state_dict=None):
        """Differs from GRPOTrainer in the config next to an adapter, without which its thinking mode would be lost."""
        super()._save(output_dir, state_dict)
        base = self.accelerator.unwrap_model(self.model)
        if is_peft_model(base) and self.args.should_save:
            base.get_base_model().config.save_pretrained(output_dir or self.args.output_dir)

    def _rollout_settings(self):
        """Differs from GRPO's in the thinking mode."""
        return {**super()._rollout_settings(), "thinking_mode": self.thinking_mode}


def _fit(tensor, count):
    """
    Cut or pad (with 0 or `False`) the columns of a tensor `[B, C, ...]` to `count`: TRL pads completions on the right.
    """
    missing = count - tensor.shape[1]
    if missing <= 0:
        return tensor[:, :count]
    return torch.cat([tensor, tensor.new_zeros(len(tensor), missing, *tensor.shape[2:])], dim=1)
