"""Trainers that write a model card of their own."""

import os
from collections import defaultdict
from pathlib import Path

from accelerate.utils import is_peft_model

from ..evaluation.statistics import mean_interval
from ..report.model_card import CardContent, Sample, generation_snippet, write_model_card


_SETTINGS = (
    *("learning_rate", "lr_thinking_residual_gate", "lr_thinking_residual_Lambda", "lr_thinking_projection"),
    *("lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm", "optim"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "num_train_epochs", "bf16", "seed"),
    *("num_generations", "num_iterations", "beta", "temperature", "max_completion_length", "loss_type"),
    *("objective", "soft_target_weight", "distill_weight", "teacher_forcing_steps", "latent_curriculum"),
    *("latent_steps_per_stage", "latent_until_loss", "latent_tokens_per_step", "earlier_stage_share"),
)
_FINAL = {
    "eval_loss": "Held-out loss",
    "eval_perplexity": "Held-out perplexity",
    "eval_accuracy": "Held-out accuracy",
    "latent/kl": "KL of a thought to its target in training, last logged, nats",
    "latent/target_share": "Probability of a thought on its targets in training, last logged",
}
_OWN_TYPES = ("thinking_", "tinyseek", "crosslayer", "ablation", "looped")
_SHOWN_SAMPLES = 3


class ModelCardMixin:
    """
    A card that can be used: snippet, settings, results, reproduction. Put before the trainer's class.

    `model_card_dataset` is the data set's name, `model_card_notes` Markdown for the end of the card.
    """

    model_card_dataset: str | None = None
    model_card_notes: str | None = None
    chat_template_kwargs: dict | None = None  # trainers with rollouts have their own
    _card_method = "next-token prediction"
    _card_citation: str | None = None
    _card_tags = ("hf_evidenceflow",)

    def create_model_card(self, model_name=None, dataset_name=None, tags=None, license=None, **kwargs):
        """Differs from the parent in all that the card says; the arguments go into its title and metadata."""
        if self.is_world_process_zero():
            write_model_card(self.args.output_dir, self._card_content(model_name, dataset_name, tags, license))

    def _card_content(self, model_name, dataset_name, tags, license) -> CardContent:
        model = self.accelerator.unwrap_model(self.model)
        adapter = is_peft_model(model)
        config = (model.get_base_model() if adapter else model).config
        base = model.active_peft_config.base_model_name_or_path if adapter else config.name_or_path
        dataset = dataset_name or self.model_card_dataset
        title = model_name or (self.args.hub_model_id or Path(self.args.output_dir).resolve().name).split("/")[-1]
        thinks = config.model_type.startswith("thinking_") and config.thinking_mode != "none"
        prompt, chat = self._card_prompt()
        name = self.args.hub_model_id or str(self.args.output_dir)
        usage = config.model_type.startswith("thinking_"), self.chat_template_kwargs
        loader = _loader(config.model_type, adapter)
        remote = not adapter and any(Path(self.args.output_dir).glob("modeling_*.py"))
        metadata = {
            "base_model": base if _is_hub_name(base) else None,
            "datasets": [dataset] if dataset and _is_hub_name(dataset) else None,
            "library_name": "peft" if adapter else "transformers",
            "pipeline_tag": "text-generation",
            "license": license,
            "model_name": title,
            "tags": sorted({*self._card_tags, *([tags] if isinstance(tags, str) else tags or ())}),
        }
        return CardContent(
            title=title,
            summary=self._card_summary(config, base, adapter, thinks, dataset),
            snippet=generation_snippet(name, prompt, loader, chat, *usage),
            remote_snippet=generation_snippet(name, prompt, _REMOTE_LOADER, chat, *usage) if remote else None,
            metadata={key: value for key, value in metadata.items() if value is not None},
            results=self._card_results(),
            tables={
                "Thinking": _thinking(config),
                "Adapter": _adapter(model) if adapter else {},
                "Training": self._card_settings(),
            },
            samples=self._card_samples(),
            facts=[*([f"Data: {_shown(dataset)}"] if dataset else []), f"Seed: {self.args.seed}"],
            citation=self._card_citation,
            notes=self.model_card_notes.strip() if self.model_card_notes else None,
        )

    def _card_summary(self, config, base, adapter, thinks, dataset) -> str:
        kind = "An adapter" if adapter else "A model"
        origin = f" {'of' if adapter else 'that started from'} {_shown(base)}" if base else ""
        data = f" on {_shown(dataset)}" if dataset else ""
        text = f"{kind} of type `{config.model_type}`{origin}, trained by {self._card_method}{data}."
        if thinks:
            text += _how_it_thinks(config)
        return text

    def _card_settings(self) -> dict:
        values = self.args.to_dict()
        settings = {name: values[name] for name in _SETTINGS if name in values}
        return settings | {"steps done": self.state.global_step, "processes": self.args.world_size}

    def _card_results(self) -> list[str]:
        last = {key: value for row in self.state.log_history for key, value in row.items() if key in _FINAL}
        return [f"{_FINAL[key]}: {value:.4g}" for key, value in last.items()]

    def _card_prompt(self) -> tuple:
        """A prompt for the snippet, and whether it is a chat."""
        return "Once upon a time", False

    def _card_samples(self) -> list[Sample]:
        return []


class RewardModelCardMixin(ModelCardMixin):
    """For trainers of TRL that reward completions: graders, the rewards of the last rollout, and samples of it."""

    @property
    def last_samples(self) -> dict[str, list | dict[str, list]]:
        """Prompts, completions and rewards (one list per reward function) of the last rollout, all processes."""
        return {
            "prompts": list(self._logs["prompt"]),
            "completions": list(self._logs["completion"]),
            "rewards": {name: list(values) for name, values in self._logs["rewards"].items()},
        }

    @property
    def _card_method(self):
        return f"{self._name} ([{self._paper['title']}](https://huggingface.co/papers/{self._paper['id']}))"

    @property
    def _card_citation(self):
        return self._paper["citation"]

    @property
    def _card_tags(self):
        return self._tag_names

    def _card_prompt(self):
        prompts = self._logs["prompt"]
        prompt = prompts[-1] if prompts else "What is 2 + 3?"
        return prompt, isinstance(prompt, list)

    def _card_rewards(self) -> list[float]:
        """Weighted sum of the rewards of each logged completion; NaN of a function that did not score counts as 0."""
        weights = self.reward_weights.tolist()
        rows = zip(*(self._logs["rewards"][name] for name in self.reward_func_names))
        return [sum(w * r for w, r in zip(weights, row) if r == r) for row in rows]

    def _card_results(self):
        lines = [f"Graders: {', '.join(f'`{name}`' for name in self.reward_func_names)}"]
        rewards = self._card_rewards()
        if rewards and all(0 <= reward <= 1 for reward in rewards):
            by_prompt = defaultdict(list)
            for prompt, reward in zip(self._logs["prompt"], rewards):
                by_prompt[str(prompt)].append(reward)
            rate = mean_interval([sum(values) / len(values) for values in by_prompt.values()])
            lines.append(
                f"Reward of the last {len(rewards)} completions of the training ({len(by_prompt)} prompts, sampled): "
                f"{rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}] (95 %). It is no held-out accuracy, which "
                "`recipes/evaluate_gsm8k.py` measures."
            )
        return lines + super()._card_results()

    def _card_samples(self):
        latent = list(self._logs["extra"].get("latent_weight", ()))
        rows = list(zip(self._logs["prompt"], self._logs["completion"], self._card_rewards()))[-_SHOWN_SAMPLES:]
        latent = latent[-len(rows) :] if len(latent) >= len(rows) else [None] * len(rows)
        return [Sample(*row, weight) for row, weight in zip(rows, latent)]


_REMOTE_LOADER = (
    "from transformers import AutoModelForCausalLM\n"
    "model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True)"
)


def _loader(model_type: str, adapter: bool) -> str:
    if model_type.startswith("thinking_"):
        return "from hf_evidenceflow import load_thinking_model\nmodel = load_thinking_model(name)"
    kind = "AutoPeftModelForCausalLM" if adapter else "AutoModelForCausalLM"
    imported = f"from {'peft' if adapter else 'transformers'} import {kind}"
    if model_type.startswith(_OWN_TYPES):
        imported += "; import hf_evidenceflow  # registers the model"
    return f"{imported}\nmodel = {kind}.from_pretrained(name)"


def _how_it_thinks(config) -> str:
    """Sentence about the thinking of a config, with the space before it."""
    until = "until the answer marker"
    if config.thinking_count is not None:
        until = f"for the first {config.thinking_count} tokens of a completion"
    elif not config.ends_by_marker:
        until = "over the whole completion"
    method = config.thinking_method
    if not method.fuses:
        return f" It pauses before it writes: {until}, its tokens are placeholders."
    if method.schedule not in ("until_marker", "count", "always"):
        until += f", where the schedule `{method.schedule}` says so"
    fed = "its embedding mixed with a state of the model"
    if method.mixer == "replace":
        fed = "a state of the model in the place of an embedding"
    return f" It thinks in its own vector space while it writes: {until}, the input of each token is {fed}."


def _thinking(config) -> dict:
    if not config.model_type.startswith("thinking_"):
        return {}
    return {name: value for name, value in config.to_dict().items() if name.startswith("thinking_")}


def _adapter(model) -> dict:
    names = ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save")
    settings = {name: value for name, value in model.active_peft_config.to_dict().items() if name in names}
    return {
        name: ", ".join(sorted(value)) if isinstance(value, list | set) else value for name, value in settings.items()
    }


def _is_hub_name(name: str | None) -> bool:
    """Whether a name is that of a repository: `owner/name`, and no folder here."""
    return bool(name) and not os.path.exists(name) and name.count("/") == 1 and name[0] not in "./~"


def _shown(name: str) -> str:
    """The name of a repository, or the last part of a path, which says nothing elsewhere."""
    return f"`{name if _is_hub_name(name) else Path(name).name}`"
