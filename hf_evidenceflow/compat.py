"""Every private name of other libraries that this package leans on: where, why, and what would make it needless.

No module imports a private name. What remains are methods that classes of ours override or call, and attributes that
they read. [`broken_seams`] compares the names with what is installed.
"""

import ast
import functools
import importlib
import inspect
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass


TRAINER = "transformers.Trainer"
GRPO = "trl.GRPOTrainer"
MODEL = "transformers.PreTrainedModel"
GENERATION = "transformers.GenerationMixin"
TUNER = "peft.tuners.tuners_utils.BaseTuner"
TUNER_LAYER = "peft.tuners.tuners_utils.BaseTunerLayer"

# The oldest versions of the supported window, or of those that the names were checked with
SINCE = {
    "torch": "2.13",
    "transformers": "5.21",
    "trl": "1.16",
    "peft": "0.21",
    "accelerate": "1.14",
    "lm_eval": "0.4.13",
}


@dataclass(frozen=True)
class Seam:
    """
    A private name that we lean on.

    Args:
        owner (`str`):
            Path of the class or module that has it.
        name (`str`):
            The name.
        parameters (`tuple[str, ...]`, *optional*):
            Names of a method's parameters as we call or override it; None for an attribute.
        used_in (`str`):
            Module of ours that uses it, the first one if there are several.
        why (`str`):
            What for.
        remove_when (`str`):
            What would make it needless.
    """

    owner: str
    name: str
    parameters: tuple[str, ...] | None
    used_in: str
    why: str
    remove_when: str

    @property
    def since(self) -> str:
        package = self.owner.split(".")[0]
        return f"{package} {SINCE[package]}"


def _seams(owner: str, used_in: str, remove_when: str, uses: dict[str, str]) -> list[Seam]:
    """Rows that differ in name and purpose; a method is written with its parameters."""
    seams = []
    for written, why in uses.items():
        name, bracket, parameters = written.rstrip(")").partition("(")
        listed = tuple(filter(None, parameters.split(", "))) if bracket else None
        seams.append(Seam(owner, name, listed, used_in, why, remove_when))
    return seams


SEAMS = (
    *_seams(
        *(TRAINER, "run_folder.atomic_checkpoint", "Trainer writes a checkpoint whole or not at all"),
        {
            "_save_checkpoint(model, trial)": "gives the folder its name when it is whole",
            "_get_output_dir(trial)": "writes elsewhere until then",
            "_push_from_checkpoint(checkpoint_folder)": "uploads after the rename",
            "_finalize_training(trial, num_train_samples, start_time)": "keeps the last checkpoint; `train_loss`",
        },
    ),
    *_seams(
        *(TRAINER, "run_folder.resumable_trainer", "a resumed Trainer goes on as if it had not been cut off"),
        {
            "_init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, "
            "trial)": "compares the settings, restores the rollouts",
            "_load_from_checkpoint(resume_from_checkpoint, model)": "refuses weights that are NaN",
            "_load_optimizer_and_scheduler(checkpoint)": "says what does not fit",
            "_load_rng_state(checkpoint)": "does what was due at the checkpoint's step",
            "_initial_global_step": "tells whether anything was trained",
        },
    ),
    *_seams(
        *(TRAINER, "run_folder.unlogged_state", "Trainer saves what it has gathered since the last logged row"),
        {"_tr_loss": "sum of losses", "_total_loss_scalar": "sum before it", "_globalstep_last_logged": "its step"},
    ),
    *_seams(
        *(GRPO, "trainers.saved_rollouts", "GRPOTrainer saves the rollouts that are not used up"),
        {"_step": "count by which rollouts come", "_buffered_inputs": "rollouts at hand"},
    ),
    *_seams(
        *(TRAINER, "trainers.saved_rollouts", "GRPOTrainer saves the rollouts that are not used up"),
        {"_save_rng_state(output_dir)": "is called on all ranks when a checkpoint is written"},
    ),
    *_seams(
        *("trl.SFTTrainer", "trainers.completion_trainer", "SFTTrainer saves its metrics"),
        {"_total_train_tokens": "kept over a resume"},
    ),
    *_seams(
        *(TRAINER, "run_folder.resumable_trainer", "Trainer saves and exits with 143 on SIGTERM, on all ranks"),
        {
            "_validate_args()": "refuses another handler",
            "_run_epoch(model, epoch, train_dataloader, steps_in_epoch, num_update_steps_per_epoch, trial, "
            "ignore_keys_for_eval, start_time, resume_from_checkpoint, epochs_trained, "
            "steps_trained_in_current_epoch)": "lets SIGTERM wait for the end of the step",
            "_evaluate(trial, ignore_keys_for_eval, skip_scheduler)": "can be cut off",
            "_maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, "
            "learning_rate)": "ends the run with a checkpoint; stops the clock",
        },
    ),
    *_seams(
        *(TRAINER, "trainers.pretraining_trainer", "Trainer takes a function that makes the schedule"),
        {"_created_lr_scheduler": "a second call of `train` makes the schedule anew"},
    ),
    *_seams(
        *(TRAINER, "trainers.hub_code_mixin", "Trainer.save_model has a hook for further files"),
        {"_save(output_dir, state_dict)": "saves the code next to the weights"},
    ),
    *_seams(
        *(GRPO, "trainers.hrpo_trainer", "GRPOTrainer has public hooks for rollouts, log-probabilities and loss"),
        {
            "_generate_and_score_completions(inputs)": "keeps the thinking of each completion",
            "_get_per_token_logps_and_entropies(model, input_ids, attention_mask, logits_to_keep, batch_size, "
            "compute_entropy, compute_aux_loss, pixel_values, image_grid_thw, num_images, pixel_attention_mask, "
            "spatial_shapes, num_tiles, image_sizes, token_type_ids, mm_token_type_ids, image_position_ids)": "adds "
            "the thinking; mixed sampling",
            "_compute_loss(model, inputs)": "PPO's loss; the thinking of the batch",
            "_metrics": "logs further metrics",
            "_logs": "texts for the model card",
            "_tokenizer": "the tokenizer of a processor or the tokenizer itself",
        },
    ),
    *_seams(
        *(GRPO, "trainers.thinking_rollouts", "GRPOTrainer has public hooks for rollouts"),
        {
            "_generate_single_turn(prompt_ids, images, multimodal_fields, num_generations, has_tool_images)": "thinks",
            "_log_completion_extra(column, values)": "a column of the completions table",
        },
    ),
    *_seams(
        *(GRPO, "trainers.update_passes", "GRPOTrainer computes the prompt of a group once in the update"),
        {"_prepare_inputs(generation_batch)": "keeps the completions of a prompt together"},
    ),
    *_seams(
        *(GRPO, "trainers.ppo_trainer", "TRL has a PPO trainer again"),
        {"_calculate_rewards(inputs, prompts, completions, completion_ids_list)": "keeps each reward"},
    ),
    *_seams(
        *(GRPO, "trainers.generation_kwargs", "GRPOTrainer counts completions that end at a stop string as ended"),
        {"_generate(prompts)": "corrects the counts"},
    ),
    *_seams(
        *(GRPO, "trainers.model_card_mixins", "TRL takes the entries of a model card as arguments"),
        {"_name": "of the method", "_paper": "title, number and citation", "_tag_names": "tags"},
    ),
    *_seams(
        *(GENERATION, "models.thinking.generation_thinking", "generate takes a decoding loop that stays with a model"),
        {
            "_sample(input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus, streamer, "
            "model_kwargs)": "decodes with thinking",
            "_validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)": "refuses others",
        },
    ),
    *_seams(
        *(GENERATION, "early_exit.generation", "a prepared GenerationConfig can be had by a public call"),
        {"_prepare_generation_config(generation_config, kwargs)": "checks the settings as generate sees them"},
    ),
    *_seams(
        *(GENERATION, "models.crosslayer.modeling_crosslayer", "the shape of a static cache comes from the config"),
        {"_get_static_cache_init_shape()": "variants whose layers share keys"},
    ),
    *_seams(
        *("transformers.generation.utils", "rollouts.engine", "a decoding loop gets token ids as arguments"),
        {
            "_eos_token_tensor": "set on the config of a decoding loop",
            "_pad_token_tensor": "set on the config of a decoding loop",
        },
    ),
    *_seams(
        *("transformers.generation.utils", "rollouts.support", "a cache that the user gave is told by a public flag"),
        {"_is_user_defined": "the engine brings a cache of its own"},
    ),
    *_seams(
        *(
            "transformers.core_model_loading",
            "models.auto_thinking",
            "key_mapping has names that are not written again",
        ),
        {"_weight_conversions": "a text model is saved under names of its own"},
    ),
    *_seams(
        *("torch.nn.Module", "models.thinking.thinking_residual", "a module can be left out of a cast"),
        {"_apply(fn, recurse)": "Lambda stays in float32"},
    ),
    *_seams(
        *("torch.nn.Module", "models.tinyseek.modeling_tinyseek", "torch tells whether a module has hooks"),
        {"_forward_pre_hooks": "a hook must see what is projected"},
    ),
    *_seams(
        *("torch.ops.aten", "models.crosslayer.score_accumulation", "the gradient of softmax is a public function"),
        {"_softmax_backward_data": "gradient of accumulated scores"},
    ),
    *_seams(
        *("accelerate.hooks", "peft.thinking_adapters", "accelerate tells whether a module has its hooks"),
        {"_hf_hook": "they hold the plain forward"},
    ),
    *_seams(
        *("lm_eval.models.huggingface.HFLM", "integrations.lm_eval", "HFLM takes generation arguments per request"),
        {"_model_generate(context, max_length, stop, generation_kwargs)": "generates with thinking"},
    ),
)

_STAYS = "never: what a class of this kind declares or calls, as all those of the library do"

# Underscore or not, these are how transformers' models and PEFT's methods are written
EXTENSION_POINTS = (
    *_seams(
        *(MODEL, "models.tinyseek.modeling_tinyseek", _STAYS),
        {
            "_no_split_modules": "layers that stay on one device",
            "_skip_keys_device_placement": "the cache is not moved",
            "_supports_sdpa": "attention",
            "_supports_flex_attn": "attention",
            "_supports_attention_backend": "attention",
            "_can_compile_fullgraph": "static caches",
            "_can_record_outputs": "hidden states and attentions",
            "_tied_weights_keys": "tied embeddings",
            "_init_weights(module)": "fresh weights",
        },
    ),
    *_seams(
        *(MODEL, "models.crosslayer.modeling_crosslayer", _STAYS),
        {"_keep_in_fp32_modules_strict": "coefficients"},
    ),
    *_seams(
        *("transformers.PreTrainedConfig", "models.tinyseek.modeling_tinyseek", _STAYS),
        {"_attn_implementation": "attention"},
    ),
    *_seams(
        *(TUNER, "peft.houlsby", _STAYS),
        {
            "_prepare_adapter_config(peft_config, model_config)": "default targets",
            "_prepare_model(peft_config, model)": "checks the model",
            "_create_and_replace(peft_config, adapter_name, target, target_name, parent, current_key, "
            "parameter_name)": "wraps a layer",
            "_replace_module(parent, child_name, new_module, child)": "wraps a layer",
            "_check_merge_allowed()": "refuses to merge",
        },
    ),
    *_seams(
        *(TUNER_LAYER, "peft.houlsby_layer", _STAYS),
        {
            "_active_adapter": "name of the adapter",
            "_move_adapter_to_device_of_base_layer(adapter_name, device)": "device",
            "_cast_input_dtype(x, dtype)": "dtype",
        },
    ),
)


def broken_seams(seams: Iterable[Seam] = (*SEAMS, *EXTENSION_POINTS)) -> list[str]:
    """
    Compare private names with the installed libraries.

    Args:
        seams (`Iterable[Seam]`, *optional*):
            Those to look at; all by default.

    Returns:
        `list[str]`: a sentence for each that is gone, or whose parameters have other names.
    """
    return [problem for seam in seams if (problem := _problem(seam))]


def _problem(seam: Seam) -> str | None:
    owner = resolve(seam.owner)
    title = f"`{seam.owner}.{seam.name}` (used in {seam.used_in}; {seam.why})"
    if seam.name not in private_names(owner) and not hasattr(owner, seam.name):
        return f"{title} is gone."
    if seam.parameters is None:
        return None
    found = tuple(name for name in inspect.signature(getattr(owner, seam.name)).parameters if name != "self")
    if found != seam.parameters:
        return f"{title} takes ({', '.join(found)}), not ({', '.join(seam.parameters)})."
    return None


def resolve(path: str):
    """A class, a module or `torch.ops.aten` by its path."""
    package, *parts = path.split(".")
    found = importlib.import_module(package)
    for index, part in enumerate(parts):
        try:
            found = getattr(found, part)
        except AttributeError:
            found = importlib.import_module(".".join([package, *parts[: index + 1]]))
    return found


@functools.cache
def private_names(owner) -> set[str]:
    """The private names of a class, of its instances, and of what a module sets on objects."""
    sources = inspect.getmro(owner) if inspect.isclass(owner) else [owner]
    names = set(dir(owner)).union(*map(_set_in, sources))
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def _set_in(source) -> set[str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(source)))
    except (OSError, TypeError):  # written in C
        return set()
    return {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
