"""What [`LatentSFTTrainer`] settles before it trains: the way of thinking, the number of thoughts, the placeholder."""

import copy
import math

from accelerate.utils import is_peft_model
from transformers import logging

from ..models.thinking.thinking_methods import THINKING_METHODS, changed_method
from .hrpo_setup import thinking_config
from .policy import load_policy


logger = logging.get_logger(__name__)


def load_latent_model(model, args, tokenizer, rows):
    """
    The thinking model, loaded if `model` is a path, with the thinking fields of the arguments in its config.

    Raises:
        `ValueError`: if the fields do not go together, or `thinking_settings` are given for a model that is there.
    """
    settings = dict(args.thinking_settings or {})
    is_path = isinstance(model, str)
    if settings and not is_path:
        raise ValueError(
            f"`thinking_settings={settings}` are for a model that the trainer loads. Set them where the model is made."
        )
    init = {**(args.model_init_kwargs or {}), **settings} if is_path else None
    config = thinking_config(model, init)
    mode = args.thinking_mode or config.thinking_mode
    if mode not in THINKING_METHODS:
        raise ValueError(f"`thinking_mode` must be one of {', '.join(map(repr, THINKING_METHODS))}, got {mode!r}.")
    fields = thinking_fields(mode, args, tokenizer, rows)
    check_forward(mode, args)
    method = changed_method(mode, schedule=None if mode == "none" else config.thinking_schedule)
    if method.schedule not in ("until_marker", "count", "always"):
        check_schedule(method.schedule, config, rows)
    elif fields["thinking_count"] is None and method.fuses:
        check_marker(config.thinking_answer_start, args, tokenizer, rows)
    if is_path:
        args = copy.copy(args)
        args.model_init_kwargs = {**init, **fields}
        model = load_policy(model, args)
        warn_of_narrow_gates(thinking_config(model, None))
        return model
    config = (model.get_base_model() if is_peft_model(model) else model).config
    for name, value in fields.items():
        setattr(config, name, value)
    config.check_thinking()
    return model


def warn_of_narrow_gates(config) -> None:
    """Gates that let almost no state in have nothing to teach."""
    r_min = config.thinking_residual_r_min
    if config.thinking_method.mixer == "gated" and r_min > 0.5:
        logger.warning(
            f"`thinking_residual_r_min={r_min}` begins with gates that give a state a weight of at most "
            f"{math.sqrt(1 - r_min**2):.2f}, so that thoughts can hardly do anything. Pass wide ones, "
            '`thinking_settings={"thinking_residual_r_min": 0.05, "thinking_residual_r_max": 0.2}`, or '
            "`thinking_mode='soft'`, which has none."
        )


def thinking_fields(mode: str, args, tokenizer, rows) -> dict:
    """Fields of the thinking config that the run decides."""
    fields: dict = {"thinking_mode": mode, "thinking_count": None, "thinking_token_policy": None}
    if mode == "none":
        if args.objective != "soft_targets" and thought_count(mode, args, rows):
            raise ValueError(
                f"`thinking_mode='none'` has no thoughts that `objective={args.objective!r}` could train. Choose "
                "another mode; `latent_curriculum=[0]` trains on the discrete chain."
            )
        return fields
    count = thought_count(mode, args, rows)
    policy = args.thinking_token_policy
    if policy is None and count is not None and args.objective != "soft_targets":
        policy = "placeholder"  # nothing teaches these thoughts a token
    fields |= {"thinking_count": count, "thinking_token_policy": policy}
    if "placeholder" in (policy, THINKING_METHODS[mode].token_policy if policy is None else None):
        fields["thinking_placeholder_id"] = placeholder_id(args, tokenizer)
    return fields


def thought_count(mode: str, args, rows) -> int | None:
    """
    Number of thoughts that the checkpoint decodes with; `None`: until the marker.

    Raises:
        `ValueError`: if it must be fixed and the rows differ, or `thinking_count` is not what is trained.
    """
    given, stages = args.thinking_count, args.latent_curriculum
    if args.objective == "distill":
        return given
    policy = args.thinking_token_policy or THINKING_METHODS[mode].token_policy
    if args.objective == "soft_targets" and given is None and policy != "placeholder":
        return None
    column, each = ("target_ids", 1) if args.objective == "soft_targets" else ("step_ids", args.latent_tokens_per_step)
    if stages is not None and args.objective == "answer":
        trained = {stages[-1] * each if given is None else min(stages[-1] * each, given)}
    else:
        lengths = {len(steps) for steps in rows[column]}
        trained = {min(length, stages[-1]) if stages else length * each for length in lengths}
    if len(trained) > 1:
        remedy = f"cut them by `latent_curriculum=[{min(trained)}]`, or choose a mode that ends by the answer marker"
        if args.objective == "answer":
            remedy = f"set `latent_curriculum=[{max(trained) // each}]`: rows with fewer steps get as many thoughts"
        raise ValueError(
            f"The model will decode with a fixed number of thoughts, and the rows have {_shown(trained)}. Give all "
            f"rows as many, or {remedy}."
        )
    if given is not None and trained != {given}:
        raise ValueError(
            f"`thinking_count` is {given}, and the rows train {_shown(trained)} thoughts. Leave it out, or set it to "
            "their number."
        )
    return trained.pop()


def _shown(counts: set[int]) -> str:
    return ", ".join(map(str, sorted(counts)[:5])) + (", ..." if len(counts) > 5 else "")


def check_forward(mode: str, args) -> None:
    """A `ValueError` for settings of the forward pass that the mode does not allow."""
    method, policy = THINKING_METHODS[mode], args.thinking_token_policy
    if args.teacher_forcing_steps and method.fuses and not method.reads_distribution:
        raise ValueError(
            f"`thinking_mode={mode!r}` has states that no target distribution gives, so that it can't be trained with "
            f"`teacher_forcing_steps={args.teacher_forcing_steps}`. Set that to 0, or take the mode `soft` or "
            "`embedding`."
        )
    if args.latent_iterations and method.mixer != "replace" and (policy or method.token_policy) == "sample":
        raise ValueError(
            f"`latent_iterations={args.latent_iterations}` needs thoughts whose tokens are not drawn at random. Set "
            "`thinking_token_policy='argmax'`, or leave it out."
        )


def check_marker(marker: str | None, args, tokenizer, rows) -> None:
    """
    A `ValueError` if a checkpoint that thinks until its marker would not stop where the thoughts of the rows end: the
    text after them has to begin with the marker, as one token.
    """
    stage = args.latent_curriculum[-1] if args.latent_curriculum else None
    if stage is not None and any(len(row["step_ids"]) > stage for row in rows):
        raise ValueError(
            f"The last stage of `latent_curriculum={args.latent_curriculum}` leaves steps as text, during which a "
            "model that thinks until its answer marker would go on thinking. Set `thinking_count`, or let the last "
            "stage take all steps."
        )
    first = tokenizer.decode(rows[0]["answer_ids"][:1])
    if marker is None or marker not in first:
        raise ValueError(
            f"The text after the thoughts begins with the token {first!r} (`answer_template={args.answer_template!r}`"
            f"), and decoding ends the thinking at `thinking_answer_start={marker!r}`. Let the template begin with "
            "that marker, and take one that is a single token of the tokenizer; or set `thinking_count`, if all rows "
            "have as many thoughts."
        )


def check_schedule(schedule: str, config, rows) -> None:
    """
    A `ValueError` if decoding would not think where the rows do, between the prompt and the text after the thoughts.
    """
    if schedule != "boundary":
        raise ValueError(
            f"The schedule {schedule!r} chooses itself which tokens are thoughts, and the rows train those between "
            "prompt and answer. Train a mode that thinks there, such as 'soft', and set `thinking_mode` or "
            "`thinking_schedule` behind it; or train with HRPOTrainer."
        )
    start, end = config.thinking_start_id, config.thinking_end_id
    for row in rows:
        found = row["prompt_ids"][-1], row["answer_ids"][0]
        if found != (start, end):
            raise ValueError(
                f"Decoding thinks between the tokens `thinking_start_id={start}` and `thinking_end_id={end}`, and a "
                f"row has its thoughts between {found[0]} and {found[1]}. Let prompts end with the first one, and "
                "`answer_template` begin with the second."
            )


def placeholder_id(args, tokenizer) -> int:
    """
    Id of the token that stands for a thought.

    Raises:
        `ValueError`: if it is no single token or ends texts, or if none is given and the tokenizer has none to take.
    """
    if args.placeholder_token is not None:
        ids = tokenizer(args.placeholder_token, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] == tokenizer.eos_token_id:
            raise ValueError(
                f"`placeholder_token={args.placeholder_token!r}` must be one token that ends no text, got "
                f"{tokenizer.convert_ids_to_tokens(ids)}."
            )
        return ids[0]
    for index in (tokenizer.unk_token_id, tokenizer.pad_token_id):
        if index is not None and index != tokenizer.eos_token_id:
            return index
    raise ValueError(
        "Thoughts need a placeholder, and the tokenizer has neither an unknown nor a padding token apart from its end "
        "of text. Set `placeholder_token`, for example to '...'."
    )
