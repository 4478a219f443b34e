"""Supervised training of a model that thinks in states, on TRL's SFTTrainer.

What differs from SFT: rows have thoughts, computed by the model itself with gradients through its states
([`latent_forward`]), and an objective says what they are taught. A batch without thoughts is SFTTrainer's own.

Shapes: B rows, T positions, C latent columns.
"""

import random
from collections import deque
from collections.abc import Mapping
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from trl import SFTTrainer

from ..callbacks.latent_curriculum import LatentCurriculum
from ..losses.latent import hidden_state_distance, soft_target_losses
from ..models.thinking.latent_forward import latent_columns
from ..run_folder.rank_agreement import RankAgreement
from ..run_folder.resumable_trainer import ResumableTrainerMixin
from .hrpo_setup import prepare_thinking_parameters, shard_thinking_modules, thinking_config, with_thinking_modules
from .hub_code_mixin import HubCodeMixin
from .latent_rows import IGNORE_INDEX, RowReader, batch_rows, compose, discrete, read_rows
from .latent_setup import load_latent_model
from .latent_sft_config import LatentSFTConfig
from .model_card_mixins import ModelCardMixin
from .policy import default_args, load_policy_tokenizer, plain_init_kwargs
from .thinking_groups import thinking_group_specs
from .thinking_trainer_mixin import ThinkingTrainerMixin


_PAPERS = {
    "soft_targets": "[CoT2](https://huggingface.co/papers/2505.23648)",
    "answer": "[Coconut](https://huggingface.co/papers/2412.06769)",
    "distill": "[CODI](https://huggingface.co/papers/2502.21074)",
}


class LatentSFTTrainer(
    ThinkingTrainerMixin,
    ModelCardMixin,
    HubCodeMixin,
    ResumableTrainerMixin,
    SFTTrainer,
):
    """
    Trainer of thoughts. Its rows have a `prompt` (text or chat messages), an `answer` (text), and `steps` (the texts
    of the discrete chain) or `thought_targets` (for each thought a dictionary of texts, one token each, and weights).

    Example:

    ```python
    >>> from hf_evidenceflow import LatentSFTConfig, LatentSFTTrainer

    >>> rows = [{"prompt": "...", "answer": "12", "thought_targets": [{" 3": 0.5, " 4": 0.5}, {" 12": 1.0}]}]
    >>> trainer = LatentSFTTrainer(
    ...     model="Qwen/Qwen3-0.6B",
    ...     args=LatentSFTConfig("qwen-latent", thinking_mode="soft", teacher_forcing_steps=0.5),
    ...     train_dataset=rows,
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Hub name or folder of a plain or thinking checkpoint, a thinking model, or a PEFT model around one.
        args ([`LatentSFTConfig`], *optional*):
            Arguments.
        train_dataset, eval_dataset (`datasets.Dataset` or `list[dict]`):
            Rows as above.
        peft_config ([`~peft.PeftConfig`], *optional*):
            The thinking modules that the mode uses are added to its `modules_to_save`.
        processing_class, callbacks, optimizers:
            As in [`~trl.SFTTrainer`].
    """

    kept_attributes = ("_metrics", "_total_train_tokens", "curriculum_state")

    _tag_names = ["trl", "latent-sft", "hf_evidenceflow"]
    _card_tags = tuple(_tag_names)

    @property
    def _card_method(self):
        return f"latent supervised training, objective `{self.args.objective}` ({_PAPERS[self.args.objective]})"

    def _card_prompt(self):
        return self.processing_class.decode(self.train_dataset[0]["prompt_ids"]), False

    def __init__(
        self,
        model,
        args=None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        callbacks=None,
        optimizers=(None, None),
        peft_config=None,
    ):
        args = default_args(LatentSFTConfig, "Latent-SFT", model) if args is None else args
        name = model if isinstance(model, str) else model.config.name_or_path
        if processing_class is None:
            processing_class = load_policy_tokenizer(name, args)
        if processing_class.eos_token_id is None:
            raise ValueError("The tokenizer has no `eos_token`, so that no text could end. Give it one.")
        if processing_class.pad_token_id is None:  # as in TRL
            processing_class.pad_token = args.pad_token or processing_class.eos_token
        self._reader, self._most_thoughts = RowReader(processing_class, args), 0
        train_dataset = self._read(train_dataset, args, "training")
        eval_dataset = self._read_evaluation(eval_dataset, args)
        is_path = isinstance(model, str)
        model = load_latent_model(model, args, processing_class, train_dataset)
        config = thinking_config(model, None)
        self.thinking_mode, self.thinking_method = config.thinking_mode, config.thinking_method
        placeholder = config.thinking_placeholder_id
        self.placeholder = processing_class.pad_token_id if placeholder is None else placeholder
        self.thinking_count = config.thinking_count
        self.curriculum = LatentCurriculum(
            [0] if args.latent_curriculum is None else args.latent_curriculum,
            args.latent_steps_per_stage,
            args.latent_until_loss,
            args.reset_optimizer,
        )
        if peft_config is not None:
            peft_config = with_thinking_modules(peft_config, self.thinking_method)
        with plain_init_kwargs(args, "sft_trainer") if is_path else nullcontext():
            super().__init__(
                model=model,
                args=args,
                # Rows are composed when the stage of their step is known; in a list accelerate would look for tensors
                data_collator=deque,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                callbacks=[*(callbacks or []), self.curriculum],
                optimizers=optimizers,
                peft_config=peft_config,
            )
        prepare_thinking_parameters(self.model, self.thinking_method)
        shard_thinking_modules(self.model, self.accelerator)
        self.parameter_specs = thinking_group_specs(
            self.thinking_method,
            lr_gate=args.lr_thinking_residual_gate,
            lr_Lambda=args.lr_thinking_residual_Lambda,
            lr_projection=args.lr_thinking_projection,
        )
        self._thinking_ranks = RankAgreement()
        self._refuse_sharding()

    def _refuse_sharding(self):
        """Sharded weights are gathered for each module's pass: all processes have to make the same ones."""
        deepspeed = self.accelerator.state.deepspeed_plugin
        sharded = self.is_fsdp_enabled or (deepspeed is not None and deepspeed.zero_stage == 3)
        if sharded and self.thinking_method.reads_weights:
            raise ValueError(
                f"`thinking_mode={self.thinking_mode!r}` averages embeddings outside of a pass, where FSDP and ZeRO-3 "
                "have sharded them. Train without sharded weights (DDP, ZeRO-2), or choose another mode."
            )
        numbers = {len(row["target_ids"]) for row in self.train_dataset}
        if sharded and (len(numbers) > 1 or self.args.earlier_stage_share):
            raise ValueError(
                "FSDP and ZeRO-3 need as many thoughts in all processes, and the rows have "
                f"{', '.join(map(str, sorted(numbers)))} (`earlier_stage_share={self.args.earlier_stage_share}`). "
                "Give all rows as many and leave that share out, or train without sharded weights (DDP, ZeRO-2)."
            )

    # Data

    def _read(self, dataset, args, name):
        rows = read_rows(dataset, self._reader, args.max_length, name)
        self._most_thoughts = max(self._most_thoughts, *(len(row["target_ids"]) for row in rows))
        return rows

    def _read_evaluation(self, dataset, args):
        if dataset is None or isinstance(dataset, str):
            return dataset
        if isinstance(dataset, Mapping):
            return {name: self._read_evaluation(rows, args) for name, rows in dataset.items()}
        return self._read(dataset, args, "evaluation")

    @property
    def curriculum_state(self):
        """Where the curriculum is, for a checkpoint."""
        return self.curriculum.state_dict()

    @curriculum_state.setter
    def curriculum_state(self, state):
        self.curriculum.load_state_dict(state)

    def _stage(self):
        """Steps that are thoughts now; before training, as at its end, for evaluating what was trained before."""
        if self.args.latent_curriculum is None:
            return None
        before = self.state.global_step == 0 and not self.is_in_train
        return self.curriculum.stages[-1 if before else self.curriculum.index]

    def _compose(self, rows, draws=None):
        """The batch of rows as the curriculum has them now; in training with the draws of its optimizer step."""
        stages = [self._stage()] * len(rows)
        earlier = self.curriculum.stages[: self.curriculum.index]
        if draws is not None and earlier:
            share = self.args.earlier_stage_share
            stages = [draws.choice(earlier) if draws.random() < share else stage for stage in stages]
        pad = self._tokenizer.pad_token_id
        count = self.thinking_count
        composed = [compose(row, stage, self.args, self.placeholder, count) for row, stage in zip(rows, stages)]
        batch = batch_rows(composed, pad)
        if self.args.objective == "distill":
            teacher = batch_rows([discrete(row) for row in rows], pad)
            batch |= {f"teacher_{name}": tensor for name, tensor in teacher.items()}
        return batch

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Differs from Trainer in composing the rows now, when the stage of their optimizer step is known."""
        if self.args.latent_curriculum is not None:
            self.curriculum.at(self.state.global_step, self.state.max_steps)
        # Not from the global random state: of a resumed run, Trainer restores that after this
        draws = random.Random(f"{self.args.seed} {self.state.global_step} {self.args.process_index}")
        composed = (self._compose(rows, draws) for rows in epoch_iterator)
        return super().get_batch_samples(composed, num_batches, device)

    def prediction_step(self, model, inputs, *args, **kwargs):
        """Differs from SFTTrainer in composing the rows."""
        return super().prediction_step(model, self._compose(inputs), *args, **kwargs)

    def evaluate(self, eval_dataset=None, *args, **kwargs):
        """Differs from SFTTrainer in reading rows as those of the training."""
        return super().evaluate(self._read_evaluation(eval_dataset, self.args), *args, **kwargs)

    # Loss

    def _is_taught(self):
        share = self.args.teacher_forcing_steps
        steps = share * self.state.max_steps if share < 1 else share
        return self.model.training and self.state.global_step < steps

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Differs from SFTTrainer in batches with thoughts."""
        if self.args.latent_curriculum is not None:
            self._log_latent("stage", self._stage())
        # What SFTTrainer and this class gather from all processes is not the same
        if not self._thinking_ranks.any("latent_mask" in inputs):
            plain = {name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}
            return super().compute_loss(model, plain, return_outputs, num_items_in_batch)
        objective = self._distill_loss if self.args.objective == "distill" else self._latent_loss
        loss, outputs = objective(model, inputs, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _forward(self, model, inputs, **kwargs):
        """Outputs, with the logits that precede the columns from the first thought on, and the first of these."""
        if "latent_mask" not in inputs:  # other processes think
            return model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False), 1
        start, _ = latent_columns(inputs["latent_mask"])
        targets = None
        if "target_ids" in inputs and self._is_taught():
            targets = inputs["target_ids"], inputs["target_weights"]
        return model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            latent_mask=inputs["latent_mask"],
            latent_targets=targets,
            latent_options=self.args.latent_options(),
            logits_to_keep=inputs["input_ids"].shape[1] - start + 1,
            **kwargs,
        ), start

    def _latent_loss(self, model, inputs, num_items_in_batch):
        outputs, start = self._forward(model, inputs)
        logits = outputs.logits[:, :-1]
        text = labels = inputs["labels"][:, start:]
        divergence = 0.0
        if self.args.objective == "soft_targets":
            divergence, has_target = self._divergence(logits, inputs)
            text = labels.masked_fill(F.pad(has_target, (0, labels.shape[1] - has_target.shape[1])), IGNORE_INDEX)
        cross_entropy = self._cross_entropy(logits, text)
        items = labels.ne(IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch
        loss = (divergence + cross_entropy) / items
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        self._log_tokens(logits, text, cross_entropy, inputs["attention_mask"])
        return loss, outputs

    def _divergence(self, logits, inputs):
        """Weighted sum over the thoughts, and which of the columns `(B, C)` have a target."""
        none = inputs["input_ids"].new_zeros(len(logits), 0, 0)
        ids, weights = inputs.get("target_ids", none), inputs.get("target_weights", none.float())
        has_target = weights.sum(-1) > 0
        kl, share = soft_target_losses(logits[:, : ids.shape[1]], ids, weights)
        self._log_thoughts(kl.detach(), share, has_target)
        return self.args.soft_target_weight * kl.sum(), has_target

    def _cross_entropy(self, logits, labels):
        return F.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
        )

    def _distill_loss(self, model, inputs, num_items_in_batch):
        """Cross-entropy of the chain and of the answer after thoughts, and the distance before the answer."""
        teacher = model(
            input_ids=inputs["teacher_input_ids"],
            attention_mask=inputs["teacher_attention_mask"],
            output_hidden_states=True,
            use_cache=False,
        )
        # The last pass, whose parameters DistributedDataParallel waits for, has to be the one that has them all
        outputs, start = self._forward(model, inputs, output_hidden_states=True)
        logits, labels = outputs.logits[:, :-1], inputs["labels"][:, start:]
        rows = torch.arange(len(labels), device=labels.device)
        distance = hidden_state_distance(
            [layer[rows, inputs["answer_at"]] for layer in outputs.hidden_states],
            [layer[rows, inputs["teacher_answer_at"]] for layer in teacher.hidden_states],
        )
        answer = self._cross_entropy(logits, labels)
        chain_labels = inputs["teacher_labels"][:, 1:]
        chain = self._cross_entropy(teacher.logits[:, :-1], chain_labels) / chain_labels.ne(IGNORE_INDEX).sum()
        loss = answer / labels.ne(IGNORE_INDEX).sum() + chain + self.args.distill_weight * distance
        if num_items_in_batch is not None:  # Trainer then leaves the mean over an accumulation to the loss
            loss = loss / self.current_gradient_accumulation_steps
        numbers = self.accelerator.reduce(torch.stack([distance, chain]).detach(), reduction="mean").tolist()
        self._log_latent("distance", numbers[0])
        self._log_latent("chain_loss", numbers[1])
        self._log_tokens(logits, labels, answer, inputs["attention_mask"])
        return loss, outputs

    # Log

    def _log_latent(self, name, value):
        self._metrics["train" if self.model.training else "eval"][f"latent/{name}"].append(value)

    def _log_thoughts(self, kl, share, has_target):
        """Of a row with fewer thoughts, the first one stands in a later column."""
        number = has_target.cumsum(1)[has_target] - 1
        sums = kl.new_zeros(3, self._most_thoughts)
        for row, values in zip(sums, (kl, share, has_target.to(kl))):
            row.index_add_(0, number, values[has_target])
        sums = self.accelerator.reduce(sums)
        kl, share, count = sums.sum(-1).tolist()
        self._log_latent("kl", kl / count)
        self._log_latent("target_share", share / count)
        for number, (kl, _, count) in enumerate(sums.T.tolist(), 1):
            if count:
                self._log_latent(f"kl_{number}", kl / count)

    def _log_tokens(self, logits, labels, cross_entropy, attention_mask):
        mode = "train" if self.model.training else "eval"
        valid = labels.ne(IGNORE_INDEX)
        right = (logits.argmax(-1) == labels)[valid].sum()
        numbers = torch.stack([cross_entropy.detach(), right, valid.sum(), attention_mask.sum()]).double()
        loss, right, valid, tokens = self.accelerator.reduce(numbers).tolist()
        self._log_latent("answer_loss", loss / max(valid, 1))
        self._metrics[mode]["mean_token_accuracy"].append(right / max(valid, 1))
        if mode == "train":
            self._total_train_tokens += int(tokens)
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
