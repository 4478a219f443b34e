"""PPO with a value head, on TRL's GRPO: TRL 1.16 has no PPO, neither in its trainers nor among its experimental ones.

GRPO brings what both share: rollouts, reward functions and reward models, the reference model, the buffer that keeps a
rollout with its log-probabilities through all epochs, adapters and logging. What differs: a value for each token, by a
linear head on the policy's last states; an advantage for each token (GAE), not for each group; the two clipped losses.

Deviations from the paper: the value head shares the policy's body, and starts at 0; the minibatches of a rollout are
drawn once, and each epoch takes them in the same order.

Shapes: B rows, C completion tokens, H hidden size.
"""

import textwrap
from contextlib import nullcontext

import torch
from accelerate.utils import gather_object, is_peft_model
from datasets import Dataset
from trl import GRPOTrainer

from ..losses.ppo import (
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    generalized_advantages,
    reference_kl,
    token_rewards,
    whiten,
)
from ..models.decoder import base_causal_lm
from ..rollouts.engine import RolloutEngine
from ..rollouts.generation_settings import own_generation_config
from ..rollouts.progress import shows_progress
from ..run_folder.resumable_trainer import ResumableTrainerMixin
from .data_checks import check_data
from .generation_kwargs import StopStringsMixin, check_generation_kwargs, generate_with
from .hub_code_mixin import HubCodeMixin
from .model_card_mixins import RewardModelCardMixin
from .policy import check_reference, default_args
from .ppo_config import PPOConfig
from .saved_rollouts import SavedRolloutsMixin
from .thinking_metrics import masked_mean
from .update_passes import UpdatePassesMixin, scatter
from .value_head import add_value_head, last_states, load_value_head, save_value_head, without_value_head


class PPOTrainer(
    RewardModelCardMixin,
    HubCodeMixin,
    UpdatePassesMixin,
    ResumableTrainerMixin,
    SavedRolloutsMixin,
    StopStringsMixin,
    GRPOTrainer,
):
    """
    Trainer of proximal policy optimization with a value head. Takes the arguments of [`~trl.GRPOTrainer`].

    The head is `model.value_head`. It is trained with the policy and saved next to it as `value_head.safetensors`, so
    that the folder's weights are a plain causal LM.

    Example:

    ```python
    >>> from hf_evidenceflow import PPOConfig, PPOTrainer

    >>> trainer = PPOTrainer(
    ...     model="outputs/sft",
    ...     reward_funcs="outputs/reward-model",
    ...     args=PPOConfig("ppo", generation_batch_size=64, per_device_train_batch_size=16),
    ...     train_dataset=prompts,
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Policy.
        reward_funcs:
            Reward functions, reward models, or both; their weighted sum is the score of a completion.
        args ([`PPOConfig`], *optional*):
            Arguments.
        train_dataset and what follows, kwargs:
            As in [`~trl.GRPOTrainer`].

    Raises:
        `ValueError`: if there is a KL penalty, but no folder or Hub name to load the reference model from, or if there
            are fewer prompts than a rollout takes.
    """

    _rollout_arguments = (*SavedRolloutsMixin._rollout_arguments, "gamma", "lam", "kl_in_reward", "whiten_rewards")
    kept_attributes = ("_metrics",)

    _tag_names = ["trl", "ppo", "hf_evidenceflow"]
    _name = "PPO"
    _paper = {
        "title": "Proximal Policy Optimization Algorithms",
        "id": "1707.06347",
        "citation": textwrap.dedent("""\
            @article{schulman2017proximal,
                title        = {{Proximal Policy Optimization Algorithms}},
                author       = {John Schulman and Filip Wolski and Prafulla Dhariwal and Alec Radford and Oleg Klimov},
                year         = 2017,
                eprint       = {arXiv:1707.06347},
            }"""),
    }

    def __init__(
        self, model, reward_funcs=None, args=None, train_dataset=None, eval_dataset=None, *, peft_config=None, **kwargs
    ):
        args = default_args(PPOConfig, "PPO", model) if args is None else args
        has_adapter = peft_config is not None or (not isinstance(model, str) and is_peft_model(model))
        check_reference(args, model, has_adapter)
        check_generation_kwargs(args, "none")
        super().__init__(model, reward_funcs, args, train_dataset, eval_dataset, peft_config=peft_config, **kwargs)
        # TRL's takes what it leaves open from the model's generation config
        self.generation_config = own_generation_config(self.model, **self.generation_kwargs, disable_compile=True)
        check_data(self)
        self._prepare_generation_kwargs()
        needed = args.generation_batch_size // args.num_generations
        if isinstance(self.train_dataset, Dataset) and len(self.train_dataset) < needed:
            raise ValueError(
                f"A rollout takes {needed} different prompts, and `train_dataset` has {len(self.train_dataset)}: TRL "
                "would train nothing. Lower `generation_batch_size`, or raise `num_generations`."
            )
        self._values = []  # of each pass over the policy since it was emptied, [B, C]
        self._scores = None  # of this process's completions, [B]
        self._engine = RolloutEngine(progress=shows_progress(args)) if args.use_rollout_engine else None
        add_value_head(self.model, self.accelerator.device)

    @property
    def _policy(self):
        return self.accelerator.unwrap_model(self.model)

    # Rollout

    def _generate_single_turn(self, *args, **kwargs):
        """Differs from GRPOTrainer in the decoding loop."""
        engine, base = self._engine, base_causal_lm(self._policy)
        uses_engine = engine is not None and engine.accepts(base, self.generation_config, {})
        with generate_with(self._policy, custom_generate=engine) if uses_engine else nullcontext():
            return super()._generate_single_turn(*args, **kwargs)

    def _calculate_rewards(self, inputs, *args, **kwargs):
        """Differs from GRPOTrainer in keeping the score of each completion; NaN where no function gave one."""
        rewards = super()._calculate_rewards(inputs, *args, **kwargs)
        scores = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        scores[rewards.isnan().all(1)] = torch.nan
        start = self.accelerator.process_index * len(inputs)
        self._scores = scores[start : start + len(inputs)]
        return rewards

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        """Differs from GRPOTrainer in computing the values with the same pass, if it goes over the policy."""
        self._packs(model, {})  # looks at the model with a pass of its own, whose states are nobody's
        with last_states(self._policy) as states:
            result = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
        if states:
            self._values.append(self._values_of(states, result[0].shape))
        return result

    def _values_of(self, states, shape):
        """The value of a token is that of the state before it, in which it is chosen."""
        if self._places is None:
            states = torch.cat([state[:, -shape[1] - 1 : -1] for state in states])
            return self._policy.value_head(states.float()).squeeze(-1)
        values = self._policy.value_head(torch.cat(states, dim=1)[0].float()).squeeze(-1)
        return scatter(values, self._places, shape)

    def _generate_and_score_completions(self, inputs):
        """Differs from GRPOTrainer in the advantages, one per token, and in what rides with the batch for them."""
        self._values.clear()
        output = super()._generate_and_score_completions(inputs)
        mode = "train" if self.model.training else "eval"
        mask = output["completion_mask"] * output.get("tool_mask", 1) * ~self._scores.isnan()[:, None]
        if "old_per_token_logps" in output:
            values = self._values[0]  # the reference comes after it, also where it is the policy without its adapter
        else:
            with torch.no_grad():
                output["old_per_token_logps"], values = self._logps_and_values(self.model, output)[:2]
        self._values.clear()

        old_logps, ref_logps = output["old_per_token_logps"], output.get("ref_per_token_logps")
        beta = self.beta if self.args.kl_in_reward else 0.0
        rewards = token_rewards(self._scores.nan_to_num(), mask, old_logps, ref_logps, beta)
        if self.args.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False, reduce=self._sum)
        advantages, returns = generalized_advantages(rewards, values, mask, self.args.gamma, self.args.lam)
        output |= {
            "loss_mask": mask,
            "num_items_in_batch": self._sum(mask.sum()),
            "old_values": values,
            "returns": returns,
            "advantages": whiten(advantages, mask, reduce=self._sum),
        }
        self._metrics[mode]["explained_variance"].append(explained_variance(values, returns, mask, self._sum))
        if ref_logps is not None:
            self._log_mean("kl", old_logps - ref_logps, mask)
        self._replace_group_logs(mode, output["advantages"], mask)
        return output

    def _replace_group_logs(self, mode, advantages, mask):
        """The advantages and the spread of groups that GRPO has logged are not those in use."""
        self._metrics[mode].pop("frac_reward_zero_std")
        means = gather_object(((advantages * mask).sum(1) / mask.sum(1).clamp(min=1)).tolist())
        for _ in means:
            self._logs["advantages"].pop()
        self._logs["advantages"].extend(means)

    # Loss

    def _logps_and_values(self, model, inputs):
        """Log-probabilities, values and entropies of the completion tokens, each `[B, C]`, and the auxiliary loss."""
        self._values.clear()
        names = (
            *("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles"),
            *("image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids"),
        )
        logps, entropies, aux_loss = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].shape[1],
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
            **{name: inputs.get(name) for name in names},
        )
        return logps, self._values.pop(), entropies, aux_loss

    def _compute_loss(self, model, inputs):
        """Differs from GRPOTrainer in everything: the clipped losses of PPO."""
        args, mask = self.args, inputs["loss_mask"]
        logps, values, entropies, aux_loss = self._logps_and_values(model, inputs)
        old_logps = inputs["old_per_token_logps"]
        policy_loss, clipped = clipped_policy_loss(
            logps, old_logps, inputs["advantages"], self.epsilon_low, self.epsilon_high
        )
        value_loss, value_clipped = clipped_value_loss(
            values, inputs["old_values"], inputs["returns"], args.cliprange_value
        )
        loss = policy_loss + args.vf_coef * value_loss - self.entropy_coef * entropies
        if self.beta and not args.kl_in_reward:
            loss = loss + self.beta * reference_kl(logps, inputs["ref_per_token_logps"])

        for name, per_token in {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "approx_kl": 0.5 * (logps - old_logps).square(),
            "clip_fraction": clipped.float(),
            "value_clip_fraction": value_clipped.float(),
            "entropy": entropies,
        }.items():
            self._log_mean(name, per_token, mask)

        # Each token counts the same, whatever minibatch it is in: `num_items_in_batch` is that of the whole rollout
        normalizer = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        if self.model.training:
            normalizer = normalizer * self.current_gradient_accumulation_steps / args.steps_per_generation
        loss = torch.where(mask.bool(), loss, 0.0).sum() / normalizer
        if self.aux_loss_enabled:
            accumulated = self.current_gradient_accumulation_steps if self.model.training else 1
            loss = loss + self.router_aux_loss_coef * aux_loss / accumulated
        return loss

    def _sum(self, tensor):
        return self.accelerator.reduce(tensor, reduction="sum")

    def _log_mean(self, name, per_token, mask):
        mean = masked_mean(per_token, mask, self.accelerator)
        self._metrics["train" if self.model.training else "eval"][name].append(mean)

    # Checkpoints

    def _save(self, output_dir=None, state_dict=None):
        """Differs from GRPOTrainer in the file of the value head."""
        output_dir = output_dir or self.args.output_dir
        state_dict = self._policy.state_dict() if state_dict is None else state_dict
        super()._save(output_dir, without_value_head(state_dict))
        if self.args.should_save:
            save_value_head(self._policy, output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """Differs from GRPOTrainer in loading the value head."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_value_head(self._policy, resume_from_checkpoint)
