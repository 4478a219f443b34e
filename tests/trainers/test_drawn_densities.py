"""What a rollout draws besides tokens: its density in the importance ratio, by way of thinking."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from quiet_training import STEP_BY_STEP
from thinking_models import MASK, PROMPTS, make_thinker
from transformers import AutoTokenizer

from hf_evidenceflow import HRPOConfig, HRPOTrainer, load_thinking_model
from hf_evidenceflow.models.thinking.thinking_rollout import collect_thinking
from hf_evidenceflow.trainers.drawn_densities import counted_draws, drawn_fields, fit_draws, state_density


DRAWING = ["soft_tokens", "gumbel", "tarpo"]
each_mode = pytest.mark.parametrize("mode", DRAWING)


def letters_reward(completions, **kwargs):
    return [float(sum(char in "abcdefgh" for char in text)) for text in completions]


@pytest.fixture
def make_trainer(plain_checkpoint, tmp_path):
    def make(mode, peft=False, fields=None, **overrides):
        args = {
            "output_dir": str(tmp_path / "out"),
            **STEP_BY_STEP,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "max_steps": 2,
            "max_completion_length": 7,
            "temperature": 0.8,
            "save_strategy": "no",
            "parity_check_steps": 1,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "lr_scheduler_type": "constant",
            "beta": 0.0,
            "seed": 3,
            **overrides,
        }
        prompts = ["Tom has 3", "Ann?", "7+2=", "abc", "d"] * 4
        torch.manual_seed(5)
        return HRPOTrainer(
            load_thinking_model(plain_checkpoint, thinking_mode=mode, **{"thinking_count": 4, **(fields or {})}),
            letters_reward,
            args=HRPOConfig(**args),
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            processing_class=AutoTokenizer.from_pretrained(plain_checkpoint),
            peft_config=LoraConfig(r=3) if peft else None,
        )

    return make


def rollout(trainer):
    """The first micro-batch of a generation batch, as the training loop gets it."""
    trainer.create_optimizer()
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    return trainer._prepare_inputs(batch)


def loss_and_gradient(trainer, inputs):
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, dict(inputs))
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    return loss.item(), gradients


def flat(gradients):
    return torch.cat([gradient.flatten() for name, gradient in sorted(gradients.items()) if "head" not in name])


# The ratio


@pytest.mark.parametrize(
    "update", [{}, {"share_prompts_in_update": False, "length_buckets": 2}], ids=["packed", "rows"]
)
@pytest.mark.parametrize("peft", [False, True], ids=["full", "lora"])
@each_mode
def test_at_the_first_step_the_ratio_is_1(make_trainer, mode, peft, update):
    trainer = make_trainer(mode, peft=peft, **update)
    trainer.train()
    gaps = [row["thinking/parity_gap"] for row in trainer.state.log_history if "thinking/parity_gap" in row]
    assert len(gaps) == 2 and max(gaps) <= 1e-4


@each_mode
def test_a_parity_check_sees_a_density_of_other_draws(make_trainer, mode):
    trainer = make_trainer(mode)
    inputs = rollout(trainer)
    name = {"soft_tokens": "thinking_states", "gumbel": "thinking_drawn", "tarpo": "thinking_choice"}[mode]
    inputs[name] = 1 - inputs[name] if mode == "tarpo" else inputs[name].roll(1, 0)
    inputs["thinking_mask"] = inputs["thinking_mask"] & (mode != "tarpo")
    with pytest.raises(RuntimeError, match="Parity check failed"):
        trainer._compute_loss(trainer.model, inputs)


@pytest.mark.parametrize("mode", ["soft_tokens", "gumbel"])
def test_draws_are_in_the_loss_and_their_tokens_are_not(make_trainer, mode):
    trainer = make_trainer(mode)
    inputs = rollout(trainer)
    assert inputs["tool_mask"].all()
    changed = torch.where(inputs["thinking_mask"], (inputs["completion_ids"] + 17) % 80 + 3, inputs["completion_ids"])
    loss, gradient = loss_and_gradient(trainer, inputs)
    other_loss, other_gradient = loss_and_gradient(trainer, {**inputs, "completion_ids": changed})
    assert other_loss == loss and torch.equal(flat(other_gradient), flat(gradient))
    without = {name: value for name, value in inputs.items() if name != "thinking_log_density"}
    _, tokens_only = loss_and_gradient(trainer, {**without, "tool_mask": (~inputs["thinking_mask"]).long()})
    assert (flat(gradient) - flat(tokens_only)).abs().max() > 1e-4


def test_a_token_of_text_and_the_choice_for_it_both_count(make_trainer):
    trainer = make_trainer("tarpo")
    inputs = rollout(trainer)
    chosen = inputs["thinking_choice"][:, :4]
    assert (chosen == inputs["thinking_mask"][:, :4]).all() and 0 < chosen.float().mean() < 1
    _, gradient = loss_and_gradient(trainer, inputs)
    heads = {name: value for name, value in gradient.items() if "thinking_head" in name}
    assert heads and all(value.abs().max() > 0 for value in heads.values())


@each_mode
def test_the_ratio_follows_the_weights(make_trainer, mode):
    trainer = make_trainer(mode, parity_check_steps=0)
    inputs = rollout(trainer)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    trainer._thinking = inputs["thinking_states"], inputs["thinking_mask"]
    trainer._drawn = {name[9:]: value for name, value in inputs.items() if name.startswith("thinking_")}
    ids, mask = (
        torch.cat([inputs[f"prompt_{part}"], inputs[f"completion_{part}"]], dim=1) for part in ("ids", "mask")
    )
    trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, inputs["completion_ids"].shape[1])
    assert trainer._log_density.abs().max() > 1e-3
    assert trainer._log_density[:, 4:].abs().max() == 0


# Gradients


@torch.no_grad()
def sampled(model):
    torch.manual_seed(0)
    with collect_thinking() as rollouts:
        sequences = model.generate(PROMPTS, attention_mask=MASK, max_new_tokens=5, do_sample=True, top_k=0)
    return sequences, rollouts[0]


@pytest.mark.parametrize("mode", ["soft_tokens", "gumbel"])
def test_the_gradient_of_a_density_is_its_finite_difference(mode, monkeypatch):
    model = make_thinker(mode)
    scale = model.thinking_noise_scale()
    monkeypatch.setattr(model, "thinking_noise_scale", lambda: scale)  # no gradient goes through it
    sequences, recorded = sampled(model)
    drawn = {name: value[:, 2] for name, value in fit_draws(drawn_fields(recorded), 5).items()}
    parameters = [p for name, p in model.named_parameters() if "thinking" not in name]
    directions = [torch.randn_like(parameter) for parameter in parameters]

    def density():
        mask = torch.cat([MASK, MASK.new_ones(3, 2)], dim=1)
        inputs = {"thinking_states": recorded.states[:, :2], "thinking_mask": recorded.mask[:, :2]}
        hidden = model.model(sequences[:, :6], attention_mask=mask, **inputs).last_hidden_state[:, -1]
        return state_density(model, model.read_out(hidden[None])[0], hidden, drawn).sum()

    gradients = torch.autograd.grad(density(), parameters, allow_unused=True)
    expected = sum((g * d).sum() for g, d in zip(gradients, directions) if g is not None)
    ends = []
    for step in (1e-4, -2e-4):  # the norms compute in fp32
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions):
                parameter += step * direction
            ends.append(density())
    assert float((ends[0] - ends[1]) / 2e-4) == pytest.approx(float(expected), rel=2e-3)
    assert all(g is None or g.abs().max() > 0 for g in gradients)


# Limits


def without_draws(inputs):
    dropped = ("thinking_", "tool_mask", "rollout_")
    return {name: value for name, value in inputs.items() if not name.startswith(dropped)}


@each_mode
def test_without_thoughts_the_loss_is_that_of_grpo(make_trainer, mode):
    trainer = make_trainer(mode, fields={"thinking_count": 0})
    inputs = rollout(trainer)
    loss, gradient = loss_and_gradient(trainer, inputs)
    expected_loss, expected = loss_and_gradient(trainer, without_draws(inputs))
    assert loss == pytest.approx(expected_loss, abs=1e-6)
    torch.testing.assert_close(flat(gradient), flat(expected), rtol=0, atol=1e-6)


def test_with_a_head_that_never_thinks_the_loss_is_that_of_grpo(make_trainer):
    trainer = make_trainer("tarpo")
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "thinking_head" in name:
                parameter.fill_(-80.0 if name.endswith("bias") else 0.0)
    inputs = rollout(trainer)
    assert not inputs["thinking_mask"].any()
    loss, gradient = loss_and_gradient(trainer, inputs)
    expected_loss, expected = loss_and_gradient(trainer, without_draws(inputs))
    assert loss == pytest.approx(expected_loss, abs=1e-6)
    torch.testing.assert_close(flat(gradient), flat(expected), rtol=0, atol=1e-6)


def test_without_noise_soft_tokens_train_as_soft_does(make_trainer):
    trainer = make_trainer("soft_tokens", fields={"thinking_sigma": 0})
    inputs = rollout(trainer)
    assert "thinking_log_density" not in inputs
    soft = rollout(make_trainer("soft"))
    assert all(torch.equal(inputs[name], soft[name]) for name in ("completion_ids", "tool_mask", "thinking_states"))


# KL term and clip


@each_mode
def test_the_kl_term_is_that_of_the_tokens(make_trainer, mode):
    trainer = make_trainer(mode, beta=0.1, parity_check_steps=0)
    inputs = rollout(trainer)
    inputs["advantages"] = torch.zeros_like(inputs["advantages"])
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 1e-3 * torch.randn_like(parameter)
    loss, gradient = loss_and_gradient(trainer, inputs)
    tokens = {name: value for name, value in inputs.items() if name != "thinking_log_density"}
    expected_loss, expected = loss_and_gradient(trainer, tokens)
    assert loss == pytest.approx(expected_loss, abs=1e-6) and loss > 1e-8
    torch.testing.assert_close(flat(gradient), flat(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("own", [1e-6, 1e6])
def test_draws_have_a_clip_of_their_own(make_trainer, own):
    trainer = make_trainer("soft_tokens", density_epsilon=own, epsilon=1e6, parity_check_steps=0)
    inputs = rollout(trainer)
    inputs["advantages"] = torch.ones_like(inputs["advantages"])
    inputs["old_per_token_logps"] = torch.full_like(inputs["thinking_log_density"], -12.0)  # ratios are large, all
    trainer._compute_loss(trainer.model, inputs)
    drawn = (inputs["thinking_mask"][:, :-1] * inputs["completion_mask"][:, 1:]).sum() / inputs[
        "completion_mask"
    ].sum()
    expected = drawn.item() if own < 1 else 0.0
    assert drawn > 0 and trainer._metrics["train"]["clip_ratio/high_mean"][-1] == pytest.approx(expected)
    assert trainer.epsilon_low == 1e6


@pytest.mark.parametrize(
    ("mode", "settings", "message"),
    [
        ("soft_tokens", {"top_p": 0.9}, "`top_p=0.9`.*the whole distribution"),
        ("soft_tokens", {"generation_kwargs": {"min_p": 0.1}}, "`min_p=0.1`"),
        ("gumbel", {"repetition_penalty": 1.1}, "`repetition_penalty=1.1`"),
        ("soft", {"density_epsilon": 0.0}, "`density_epsilon` must be positive"),
        ("soft", {"density_epsilon": 1.0, "importance_sampling_level": "sequence"}, "one ratio for all"),
    ],
)
def test_a_setting_that_the_update_cannot_follow_is_refused(make_trainer, mode, settings, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(mode, **settings)


# Records


def test_a_state_that_was_never_fed_does_not_count():
    drawn = {"mask": torch.tensor([[True, True, False], [True, True, True]]), "log_density": torch.zeros(2, 3)}
    completions = torch.tensor([[1, 1, 1], [1, 1, 0]])
    assert counted_draws(drawn, completions, "gaussian").tolist() == [[True, True, False], [True, False, False]]
    assert counted_draws(drawn, completions, "gumbel").tolist() == [[True, True, False], [True, True, False]]
    assert not counted_draws(drawn, completions, "none").any()


def test_columns_without_draws_say_so():
    drawn = {"choice": torch.ones(1, 2, dtype=torch.long), "drawn": torch.zeros(1, 2, 3), "mask": torch.ones(1, 2) > 0}
    fitted = fit_draws(drawn, 3)
    assert fitted["choice"].tolist() == [[1, 1, -1]]
    assert fitted["drawn"][0, 2].tolist() == [-torch.inf] * 3 and fitted["mask"].tolist() == [[True, True, False]]
    assert fit_draws(drawn, 1)["choice"].shape == (1, 1)


@pytest.mark.slow
@each_mode
def test_a_resumed_run_repeats_its_weights(make_trainer, mode, tmp_path):
    settings = {"max_steps": 4, "gradient_accumulation_steps": 1, "steps_per_generation": 4, "save_steps": 1}
    settings |= {"save_strategy": "steps"}
    whole = make_trainer(mode, **settings, output_dir=str(tmp_path / "whole"))
    whole.train()
    resumed = make_trainer(mode, **settings, output_dir=str(tmp_path / "resumed"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for (name, one), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other), name
