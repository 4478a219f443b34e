"""
HRPOTrainer: the invariants that define it, each with a mutation that breaks it, and everything it is combined with.
"""

import json
import math
import os

import pytest
import torch
from datasets import Dataset
from hostile_generation import make_hostile
from peft import LoraConfig, PeftModel, get_peft_model
from quiet_training import STEP_BY_STEP
from safetensors.torch import load_file
from tiny_models import TINY
from transformers import AutoTokenizer, Qwen2ForCausalLM, TrainerCallback
from trl import GRPOTrainer

from hf_evidenceflow import (
    HRPOConfig,
    HRPOTrainer,
    RolloutEngine,
    ThinkingQwen2Config,
    ThinkingQwen2ForCausalLM,
    load_thinking_model,
)
from hf_evidenceflow.evaluation.completions import render_prompts
from hf_evidenceflow.tasks import gsm8k_reward


THINKING = ("thinking_residual_gate_r", "thinking_residual_gate_i", "thinking_residual_Lambda", "thinking_projection")
# Gates that matter: a wrong state shows in the log-probabilities
WIDE = {"thinking_residual_r_min": 0.5, "thinking_residual_r_max": 0.6}


def letters_reward(completions, **kwargs):
    return [float(sum(char in "abcdefgh" for char in text)) for text in completions]


@pytest.fixture
def dataset():
    prompts = ["Tom has 3", "Ann?", "7+2=", "abc", "d"]
    return Dataset.from_list([{"prompt": prompt, "answer": "3"} for prompt in prompts * 4])


@pytest.fixture
def make_trainer(plain_checkpoint, dataset, tmp_path):
    def make(
        mode="projection", model=None, cls=HRPOTrainer, peft_config=None, callbacks=None, output="out", **overrides
    ):
        args = {
            "output_dir": str(tmp_path / output),
            **STEP_BY_STEP,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "max_steps": 2,
            "max_completion_length": 7,
            "temperature": 1.0,
            "save_strategy": "no",
            "parity_check_steps": 1,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 1.0,
            "beta": 0.0,
            "seed": 3,
        }
        args.update(overrides)
        if model is None:
            torch.manual_seed(5)
            model = load_thinking_model(plain_checkpoint, thinking_mode=mode, **WIDE)
        return cls(
            model,
            letters_reward,
            args=HRPOConfig(**args),
            train_dataset=dataset,
            processing_class=AutoTokenizer.from_pretrained(plain_checkpoint),
            peft_config=peft_config,
            callbacks=callbacks,
        )

    return make


def history(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def rollout(trainer):
    """
    One generation batch, as the training loop gets it: rollout, shuffling, splitting. Returns its first micro-batch.
    """
    trainer.create_optimizer()
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    return trainer._prepare_inputs(batch)


# Invariant 1: log-probabilities


@pytest.mark.parametrize("mode", ["projection", "embedding"])
def test_parity_holds_after_shuffling_and_splitting(make_trainer, mode):
    trainer = make_trainer(mode, max_steps=3)
    trainer.train()
    gaps = history(trainer, "thinking/parity_gap")
    assert len(gaps) == 3 and max(gaps) <= 1e-4


@pytest.mark.parametrize("mutation", ["shift", "drop mask", "zero states", "other sample"])
def test_parity_check_stops_a_run_whose_states_are_wrong(make_trainer, mutation, monkeypatch):
    trainer = make_trainer()
    original = HRPOTrainer._generate_and_score_completions

    def mutated(self, inputs):
        output = original(self, inputs)
        if mutation == "shift":
            output["thinking_states"] = output["thinking_states"].roll(1, dims=1)
        elif mutation == "drop mask":
            output["thinking_mask"] = torch.zeros_like(output["thinking_mask"])
        elif mutation == "zero states":
            output["thinking_states"] = torch.zeros_like(output["thinking_states"])
        else:
            output["thinking_states"] = output["thinking_states"].roll(1, dims=0)
        return output

    monkeypatch.setattr(HRPOTrainer, "_generate_and_score_completions", mutated)
    with pytest.raises(RuntimeError, match=r"Parity check failed at step 0: the largest gap .* beyond 0.001"):
        trainer.train()


def test_old_log_probabilities_use_the_recorded_states(make_trainer):
    trainer = make_trainer(num_iterations=2, gradient_accumulation_steps=1)
    inputs = rollout(trainer)
    gaps = (inputs["old_per_token_logps"] - inputs["rollout_logps"]).abs() * inputs["completion_mask"]
    assert gaps.max() <= 1e-4


def test_parity_is_checked_only_before_the_policy_moves(make_trainer):
    trainer = make_trainer(num_iterations=2, max_steps=4)
    trainer.train()
    assert len(history(trainer, "thinking/parity_gap")) == 2


def test_parity_checks_can_be_switched_off(make_trainer):
    trainer = make_trainer(parity_check_steps=0)
    trainer.train()
    assert not history(trainer, "thinking/parity_gap")


def test_projection_dropout_keeps_parity_and_changes_the_training_forward(make_trainer, plain_checkpoint):
    model = load_thinking_model(plain_checkpoint, thinking_projection_dropout=0.5, **WIDE)
    trainer = make_trainer(model=model)
    inputs = rollout(trainer)
    inputs["advantages"] = torch.tensor([1.0, -1.0, 2.0, 0.5])
    gradients = []
    for _ in range(2):
        trainer.model.zero_grad()
        trainer._compute_loss(trainer.model, inputs).backward()
        gradients.append(trainer.model.get_input_embeddings().weight.grad.clone())
    assert not torch.equal(*gradients)
    assert max(trainer._metrics["train"]["thinking/parity_gap"]) <= 1e-4


# Invariant 2: gradients


@pytest.mark.parametrize("reference", ["buckets", "TRL's batch"])
def test_a_batch_cut_by_length_has_the_loss_and_gradients_of_a_whole_one(make_trainer, reference, monkeypatch):
    mode = "none" if reference == "TRL's batch" else "projection"
    trainer = make_trainer(mode, temperature=1.0, share_prompts_in_update=False)
    inputs = rollout(trainer)
    inputs["advantages"] = torch.tensor([1.0, -1.0, 2.0, 0.5])
    inputs["completion_mask"] = (
        torch.arange(inputs["completion_ids"].shape[1]) < torch.tensor([[6], [1], [4], [2]])
    ).long()

    def measure(buckets):
        trainer.args.length_buckets = buckets
        trainer.model.zero_grad()
        loss = trainer._compute_loss(trainer.model, dict(inputs))
        loss.backward()
        return loss.detach(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}

    inputs.pop("rollout_logps", None)
    inputs.pop("rollout_step", None)
    cut = measure(3)
    if reference == "TRL's batch":
        name = "_get_per_token_logps_and_entropies"
        monkeypatch.setattr(HRPOTrainer, name, getattr(GRPOTrainer, name))
    torch.testing.assert_close(cut, measure(1), atol=1e-6, rtol=1e-5)


def test_all_thinking_modules_get_gradients_that_agree_with_finite_differences(make_trainer):
    trainer = make_trainer(temperature=1.0)
    inputs = rollout(trainer)
    inputs["advantages"] = torch.tensor([1.0, -1.0, 2.0, 0.5])
    # Off the ratio 1, where the clipped objective has a kink
    inputs["old_per_token_logps"] = inputs["rollout_logps"] - 0.05
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    inputs.pop("rollout_logps")
    model = trainer.model.double()

    def loss():
        return trainer._compute_loss(model, inputs)

    loss().backward()
    for name, parameter in model.named_parameters():
        if not any(module in name for module in THINKING):
            continue
        gradient = parameter.grad
        assert gradient is not None and gradient.abs().max() > 0, f"{name} has no gradient"
        direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        # TRL's fused head computes in fp32: with this step its rounding is below 1 % of the smallest difference
        values, step = [], 3e-3
        for sign in (1, -1):
            parameter.data += sign * step * direction
            with torch.no_grad():
                values.append(loss().item())
            parameter.data -= sign * step * direction
        numeric = (values[0] - values[1]) / (2 * step)
        analytic = (gradient * direction).sum().item()
        assert math.isclose(numeric, analytic, rel_tol=2e-2), f"{name}: {numeric} against {analytic}"


def test_states_projected_under_no_grad_would_leave_the_projection_untrained(make_trainer, monkeypatch):
    trainer = make_trainer()
    inputs = rollout(trainer)
    inputs["advantages"] = torch.tensor([1.0, -1.0, 2.0, 0.5])
    with torch.no_grad():
        inputs["thinking_states"] = torch.nn.functional.normalize(
            trainer.model.model.thinking_projection(inputs["thinking_states"]), dim=-1
        )
    monkeypatch.setattr(type(trainer.model.model), "thinking_state", lambda self, states, embeds: states)
    inputs.pop("rollout_logps")
    trainer._compute_loss(trainer.model, inputs).backward()
    assert trainer.model.model.thinking_projection.weight.grad is None
    assert trainer.model.model.thinking_residual_gate_r.weight.grad.abs().max() > 0


# Invariant 3: mode none is GRPO


@pytest.mark.parametrize("peft, engine", [(False, False), (False, True), (True, True)])
def test_mode_none_is_grpo(make_trainer, plain_checkpoint, peft, engine):
    peft_config = LoraConfig(r=3, target_modules=["q_proj", "v_proj"]) if peft else None
    # One batch a step: the logged KL is a mean of the batches' means, and HRPO keeps groups in one batch
    batches = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    hrpo = make_trainer("none", max_steps=3, peft_config=peft_config, beta=0.1, use_rollout_engine=engine, **batches)
    if engine:
        hrpo.rollout_engine = RolloutEngine(draws="multinomial")
    hrpo.train()
    grpo = make_trainer(
        model=Qwen2ForCausalLM.from_pretrained(plain_checkpoint),
        cls=GRPOTrainer,
        output="grpo",
        max_steps=3,
        peft_config=peft_config,
        beta=0.1,
        **batches,
    )
    grpo.train()
    for key in ("loss", "reward", "grad_norm", "kl"):
        pairs = list(zip(history(hrpo, key), history(grpo, key)))
        assert len(pairs) == 3
        assert all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-6) for a, b in pairs), (key, pairs)


def test_with_accumulation_mode_none_trains_as_grpo(make_trainer, plain_checkpoint):
    hrpo = make_trainer("none", max_steps=3, use_rollout_engine=False)
    hrpo.train()
    grpo = make_trainer(
        model=Qwen2ForCausalLM.from_pretrained(plain_checkpoint), cls=GRPOTrainer, output="grpo", max_steps=3
    )
    grpo.train()
    for key in ("loss", "reward", "grad_norm"):
        assert history(hrpo, key) == pytest.approx(history(grpo, key), rel=1e-6, abs=1e-6)


def test_thinking_is_not_grpo(make_trainer, plain_checkpoint):
    hrpo = make_trainer(max_steps=2)
    hrpo.train()
    grpo = make_trainer(
        model=Qwen2ForCausalLM.from_pretrained(plain_checkpoint), cls=GRPOTrainer, output="grpo", max_steps=2
    )
    grpo.train()
    assert abs(history(hrpo, "grad_norm")[0] - history(grpo, "grad_norm")[0]) > 1e-3


# Invariant 4: resume


class StopAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


RESUME = {
    "boundary": {"stop": 2, "gradient_accumulation_steps": 2},
    "inside a generation": {"stop": 1, "steps_per_generation": 4, "gradient_accumulation_steps": 2},
    "inside its iterations": {"stop": 3, "num_iterations": 2, "gradient_accumulation_steps": 2},
}


def train_in_two_parts(make_trainer, stop, between=None, **settings):
    whole = make_trainer(max_steps=4, output="whole", **settings)
    whole.train()
    first = make_trainer(
        max_steps=4, output="parts", save_strategy="steps", save_steps=stop, callbacks=[StopAfter(stop)], **settings
    )
    first.train()
    checkpoint = os.path.join(first.args.output_dir, f"checkpoint-{stop}")
    if between:
        between(checkpoint)
    second = make_trainer(max_steps=4, output="parts", **settings)
    second.train(resume_from_checkpoint=checkpoint)
    return whole, second


def log_without_times(trainer):
    times = ("per_second", "_time", "_runtime")
    return [{key: row[key] for key in row if not key.endswith(times)} for row in trainer.state.log_history]


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values()))


@pytest.mark.parametrize("where", RESUME)
@pytest.mark.parametrize("peft", [False, True])
def test_a_resumed_run_continues_bit_exactly(make_trainer, where, peft):
    settings = dict(RESUME[where], logging_steps=3, parity_check_steps=3)
    settings["peft_config"] = LoraConfig(r=3) if peft else None
    whole, resumed = train_in_two_parts(make_trainer, **settings)
    assert same_weights(whole, resumed)
    assert log_without_times(whole) == log_without_times(resumed)
    assert whole.last_samples == resumed.last_samples


def test_without_the_saved_rollouts_a_resumed_run_would_differ(make_trainer):
    whole, resumed = train_in_two_parts(
        make_trainer,
        **RESUME["inside a generation"],
        between=lambda checkpoint: os.remove(os.path.join(checkpoint, "rollouts_0.pt")),
    )
    assert not same_weights(whole, resumed)


def test_without_the_random_state_a_resumed_run_would_differ(make_trainer):
    whole, resumed = train_in_two_parts(
        make_trainer,
        **RESUME["boundary"],
        between=lambda checkpoint: os.remove(os.path.join(checkpoint, "rng_state.pth")),
    )
    assert not same_weights(whole, resumed)


def test_the_same_command_gives_the_same_numbers(make_trainer):
    first = make_trainer(output="a")
    first.train()
    second = make_trainer(output="b")
    second.train()
    assert same_weights(first, second)
    assert history(first, "loss") == history(second, "loss")


# Checkpoints


def test_a_save_cut_short_leaves_no_checkpoint_under_its_name(make_trainer, monkeypatch, tmp_path):
    trainer = make_trainer(save_strategy="steps", save_steps=1, max_steps=3)
    original = HRPOTrainer._save_rng_state
    calls = []

    def cut(self, output_dir):
        calls.append(output_dir)
        if len(calls) == 2:
            raise KeyboardInterrupt
        original(self, output_dir)

    monkeypatch.setattr(HRPOTrainer, "_save_rng_state", cut)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert [name for name in os.listdir(tmp_path / "out") if name.startswith("checkpoint")] == ["checkpoint-1"]
    monkeypatch.undo()
    resumed = make_trainer(save_strategy="steps", save_steps=1, max_steps=3)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 3
    assert sorted(name for name in os.listdir(tmp_path / "out") if "checkpoint" in name) == [
        f"checkpoint-{step}" for step in (1, 2, 3)
    ]


def test_old_checkpoints_are_rotated_and_the_best_one_is_kept_by_its_final_path(make_trainer, tmp_path):
    trainer = make_trainer(save_strategy="steps", save_steps=1, max_steps=3, save_total_limit=2)
    trainer.train()
    assert sorted(name for name in os.listdir(tmp_path / "out") if "checkpoint" in name) == [
        "checkpoint-2",
        "checkpoint-3",
    ]


def test_the_saved_model_loads_with_its_trained_thinking_modules(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    reloaded = load_thinking_model(str(tmp_path / "saved"))
    assert all(torch.equal(p, reloaded.state_dict()[name]) for name, p in trainer.model.state_dict().items())


def test_hub_code_is_saved_with_the_model(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.save_model(tmp_path / "saved")
    assert (tmp_path / "saved" / "modeling_thinking_qwen2.py").exists()
    assert "auto_map" in json.loads((tmp_path / "saved" / "config.json").read_text())


# Training really trains


@pytest.mark.parametrize("peft", [False, True])
def test_every_thinking_module_moves_at_its_own_rate(make_trainer, peft):
    trainer = make_trainer(max_steps=4, peft_config=LoraConfig(r=3) if peft else None)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    moved = {name: not torch.equal(p, before[name]) for name, p in trainer.model.named_parameters() if name in before}
    assert all(moved[name] for name in moved if "thinking" in name), moved
    rates = {group.get("name", "base"): group["lr"] for group in trainer.optimizer.param_groups}
    assert rates == {
        "base": 1e-3,
        "thinking_residual_gate": 1e-4,
        "thinking_residual_Lambda": 1e-3,
        "thinking_projection": 1e-4,
    }
    decay = {g["weight_decay"] for g in trainer.optimizer.param_groups if g.get("name") == "thinking_residual_Lambda"}
    assert decay == {0.0}


def test_modes_freeze_what_they_do_not_use(make_trainer):
    trainable = lambda trainer: {  # noqa: E731
        module for module in THINKING for n, p in trainer.model.named_parameters() if module in n and p.requires_grad
    }
    assert trainable(make_trainer("embedding")) == set(THINKING[:3])
    assert trainable(make_trainer("none")) == set()


def test_metrics_are_logged(make_trainer):
    trainer = make_trainer()
    trainer.train()
    names = ["gate_mean", "hidden_ratio", "token_share", "parity_gap", "state_cosine"]
    names += ["projection_norm", "projection_change", "projection_grad_norm"]
    for name in [*(f"thinking/{name}" for name in names), "rollout/tokens_per_second"]:
        assert len(history(trainer, name)) == 2, name
    assert 0 < history(trainer, "thinking/gate_mean")[0] < 1
    assert 0 < history(trainer, "thinking/token_share")[0] <= 1
    assert history(trainer, "thinking/projection_grad_norm")[0] > 0
    assert history(trainer, "thinking/projection_change")[0] == 0  # measured before the first step


def test_accumulating_two_micro_batches_is_one_batch(make_trainer):
    def gradient(**settings):
        trainer = make_trainer(loss_type="grpo", **settings)
        trainer.train()
        return history(trainer, "grad_norm")[0]

    once = gradient(per_device_train_batch_size=8, gradient_accumulation_steps=1, max_steps=1)
    twice = gradient(per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=1)
    assert math.isclose(once, twice, rel_tol=1e-4), (once, twice)


def test_gradient_checkpointing_gives_the_same_run(make_trainer):
    plain = make_trainer(output="a")
    plain.train()
    checkpointed = make_trainer(output="b", gradient_checkpointing=True)
    checkpointed.train()
    for key in ("loss", "grad_norm"):
        torch.testing.assert_close(history(plain, key), history(checkpointed, key), rtol=1e-4, atol=1e-5)


# Reference model


@pytest.mark.parametrize("peft", [False, True])
def test_reference_log_probabilities_use_plain_tokens(make_trainer, plain_checkpoint, peft):
    trainer = make_trainer(beta=0.1, peft_config=LoraConfig(r=3) if peft else None)
    inputs = rollout(trainer)
    base = Qwen2ForCausalLM.from_pretrained(plain_checkpoint)
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    with torch.no_grad():
        logps = base(ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    expected = logps.gather(2, ids[:, 1:, None]).squeeze(2)[:, -inputs["completion_ids"].shape[1] :]
    gaps = (inputs["ref_per_token_logps"] - expected).abs() * inputs["completion_mask"]
    assert gaps.max() <= 1e-4
    assert ((inputs["rollout_logps"] - expected).abs() * inputs["completion_mask"]).max() > 1e-2


# PEFT and precision


def test_lora_trains_the_thinking_modules_without_being_asked(make_trainer):
    trainer = make_trainer(peft_config=LoraConfig(r=3))
    assert set(trainer.model.peft_config["default"].modules_to_save) == set(THINKING)


def test_adapter_folder_loads_with_mode_and_trained_modules(make_trainer, tmp_path):
    trainer = make_trainer("embedding", peft_config=LoraConfig(r=3))
    trainer.train()
    trainer.save_model(tmp_path / "adapter")
    loaded = load_thinking_model(str(tmp_path / "adapter"))
    assert isinstance(loaded, PeftModel)
    assert loaded.config.thinking_mode == "embedding" and loaded.config.thinking_residual_r_min == 0.5
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert any("thinking_residual_Lambda" in name for name in saved)
    inputs = {"input_ids": torch.arange(3, 17).view(2, 7)}
    states = {"thinking_states": torch.ones(2, 5, 24), "thinking_mask": torch.ones(2, 5).bool()}
    trainer.model.eval(), loaded.eval()
    with torch.no_grad():
        expected = trainer.model(**inputs, **states).logits
        torch.testing.assert_close(loaded(**inputs, **states).logits, expected)


def test_merging_the_adapter_keeps_the_output(make_trainer, tmp_path):
    trainer = make_trainer(peft_config=LoraConfig(r=3))
    trainer.train()
    model = trainer.model.eval()
    inputs = {"input_ids": torch.arange(3, 17).view(2, 7)}
    states = {"thinking_states": torch.ones(2, 5, 24), "thinking_mask": torch.ones(2, 5).bool()}
    with torch.no_grad():
        expected = model(**inputs, **states).logits
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(**inputs, **states).logits, expected, rtol=0, atol=1e-5)
        merged.save_pretrained(tmp_path / "merged")
        reloaded = load_thinking_model(str(tmp_path / "merged")).eval()
        torch.testing.assert_close(reloaded(**inputs, **states).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("peft", [False, True])
def test_bf16_base_trains_fp32_thinking_modules(make_trainer, plain_checkpoint, peft):
    model = load_thinking_model(plain_checkpoint, dtype=torch.bfloat16, **WIDE)
    trainer = make_trainer(model=model, peft_config=LoraConfig(r=3) if peft else None, max_steps=3)
    before = {
        n: p.detach().clone() for n, p in trainer.model.named_parameters() if "thinking" in n and p.requires_grad
    }
    assert {p.dtype for p in before.values()} == {torch.float32}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert all(not torch.equal(after[name], p) for name, p in before.items())
    assert {after[name].dtype for name in before} == {torch.float32}
    assert max(history(trainer, "thinking/parity_gap_mean")) <= 2e-2


def test_bf16_autocast_keeps_parity_within_its_tolerance(make_trainer):
    trainer = make_trainer(bf16=True)
    trainer.train()
    assert 0 < max(history(trainer, "thinking/parity_gap_mean")) <= 2e-2


# String model ids


@pytest.mark.parametrize("kwargs", [{}, {"peft_config": LoraConfig(r=3)}], ids=["full", "lora"])
def test_a_string_is_loaded_as_a_thinking_model_through_trls_loader(make_trainer, plain_checkpoint, kwargs):
    init = {"thinking_mode": "embedding", "dtype": "bfloat16"}
    trainer = make_trainer(model=plain_checkpoint, model_init_kwargs=init, beta=0.1, max_steps=1, **kwargs)
    assert trainer.args.model_init_kwargs == init
    assert trainer.model.config.thinking_mode == "embedding"
    assert trainer.model.get_input_embeddings().weight.dtype == torch.bfloat16
    trainer.train()


# Bad input


def test_a_plain_model_is_refused_with_the_remedy(make_trainer, plain_checkpoint):
    with pytest.raises(ValueError, match="needs a thinking model, got Qwen2ForCausalLM. Load the checkpoint with"):
        make_trainer(model=Qwen2ForCausalLM.from_pretrained(plain_checkpoint))


def test_an_engine_without_thinking_states_is_refused(make_trainer):
    with pytest.raises(
        ValueError, match="`use_transformers_continuous_batching=True` with `thinking_mode='projection'`"
    ):
        make_trainer(use_transformers_continuous_batching=True)


def test_a_peft_model_without_the_thinking_modules_is_refused(make_trainer, plain_checkpoint):
    model = get_peft_model(load_thinking_model(plain_checkpoint), LoraConfig(r=3, target_modules=["q_proj"]))
    with pytest.raises(
        ValueError, match="by the active adapter .*With a PEFT model .* name them in `modules_to_save`"
    ):
        make_trainer(model=model)


def test_beta_without_a_path_for_the_reference_is_refused(make_trainer):
    with pytest.raises(ValueError, match=r"`beta=0.1` needs a reference model"):
        make_trainer(model=ThinkingQwen2ForCausalLM(ThinkingQwen2Config(**TINY)), beta=0.1)


def test_a_marker_out_of_reach_is_refused_before_training(make_trainer, plain_checkpoint):
    with pytest.raises(ValueError, match="cannot produce the answer marker"):
        make_trainer(model=load_thinking_model(plain_checkpoint, thinking_answer_start="答"))


def test_attention_dropout_is_refused_while_parity_is_checked(make_trainer, plain_checkpoint):
    model = load_thinking_model(plain_checkpoint, attention_dropout=0.1)
    with pytest.raises(ValueError, match="`attention_dropout=0.1` is random in rollouts too"):
        make_trainer(model=model)
    make_trainer(model=model, parity_check_steps=0)


def test_long_prompts_of_a_stream_are_dropped(plain_checkpoint, dataset, tmp_path):
    args = HRPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_prompt_length=4, max_steps=1)
    trainer = HRPOTrainer(plain_checkpoint, letters_reward, args=args, train_dataset=dataset.to_iterable_dataset())
    assert {row["prompt"] for row in trainer.train_dataset} == {"Ann?", "7+2=", "abc", "d"}


def test_the_saved_tokenizer_is_taken_not_one_of_the_models_family(plain_checkpoint, tokenizer, dataset, tmp_path):
    args = HRPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", beta=0.0)
    trainer = HRPOTrainer(plain_checkpoint, letters_reward, args=args, train_dataset=dataset)
    assert trainer.processing_class.get_vocab() == tokenizer.get_vocab()
    assert trainer.processing_class("Ann? 7+2=9 ####")["input_ids"] == tokenizer("Ann? 7+2=9 ####")["input_ids"]
    assert trainer.processing_class.padding_side == "left"


def test_long_prompts_are_dropped_and_counted(make_trainer, caplog):
    trainer = make_trainer(max_prompt_length=4)
    assert len(trainer.train_dataset) == 16
    assert "Dropped 4 of 20 training prompts with more than `max_prompt_length=4` tokens" in caplog.text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("parity_check_steps", -1),
        ("parity_tolerance", 0.0),
        ("max_prompt_length", 0),
        ("lr_thinking_projection", -1.0),
    ],
)
def test_a_bad_argument_is_an_error_that_names_it(tmp_path, field, value):
    with pytest.raises(ValueError, match=f"`{field}` must be .*got {value}"):
        HRPOConfig(str(tmp_path), bf16=False, **{field: value})


# Telemetry


def test_the_entropy_of_thinking_tokens_is_logged(make_trainer):
    trainer = make_trainer(max_steps=1)
    trainer.train()
    assert 0 < history(trainer, "thinking/entropy")[0] < math.log(TINY["vocab_size"])


@pytest.mark.parametrize("mode", ["projection", "none"])
def test_rollouts_do_not_follow_the_checkpoints_generation_config(make_trainer, mode):
    trainer, completions = make_trainer(mode), []
    for _ in range(2):
        torch.manual_seed(0)
        completions.append(trainer._generate_single_turn([[5, 9], [7]] * 2, None, {}, 1)[0])
        make_hostile(trainer.model)
    assert completions[0] == completions[1]


def test_a_cache_that_is_off_is_warned_of(make_trainer, caplog):
    make_trainer(max_steps=1, generation_kwargs={"use_cache": False})
    assert "each token of a rollout computes the whole text again" in caplog.text


def test_padding_with_the_end_of_sequence_is_said_but_no_warning(plain_checkpoint, dataset, tmp_path, caplog):
    caplog.set_level("INFO", logger="hf_evidenceflow")
    tokenizer = AutoTokenizer.from_pretrained(plain_checkpoint, pad_token="</s>")
    args = HRPOConfig(str(tmp_path), use_cpu=True, bf16=False, beta=0.0, report_to="none")
    model = load_thinking_model(plain_checkpoint)
    HRPOTrainer(model, lambda completions, **kwargs: [0.0], args, dataset, processing_class=tokenizer)
    said = [each for each in caplog.records if "The padding token is the end of sequence" in each.getMessage()]
    assert [each.levelname for each in said] == ["INFO"]


def test_rollouts_in_turn_keep_parity(make_trainer):
    trainer = make_trainer(max_steps=2, parity_check_steps=1, rollout_max_rows=3)
    trainer.train()
    assert max(history(trainer, "thinking/parity_gap")) < 1e-4


def test_gold_without_a_number_is_refused_before_training(plain_checkpoint, dataset, tmp_path):
    golds = Dataset.from_list([{"prompt": "2 + 3?", "answer": "5"}, {"prompt": "2 + 4?", "answer": None}])
    args = HRPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    with pytest.raises(ValueError, match="Column `answer` of row 1 cannot be graded by: it is None"):
        HRPOTrainer(plain_checkpoint, gsm8k_reward, args=args, train_dataset=dataset, eval_dataset={"test": golds})


TEMPLATE = "{% for m in messages %}<s>{{ m.content }}{% endfor %}:{% if not enable_thinking %}...{% endif %}"


@pytest.mark.parametrize("prompt", ["2 + 3?", [{"role": "user", "content": "2 + 3?"}]], ids=["text", "chat"])
def test_training_and_evaluation_render_a_prompt_to_the_same_tokens(plain_checkpoint, dataset, tmp_path, prompt):
    tokenizer = AutoTokenizer.from_pretrained(plain_checkpoint)
    tokenizer.chat_template = TEMPLATE
    kwargs = {"enable_thinking": True}
    args = HRPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", chat_template_kwargs=kwargs)
    trainer = HRPOTrainer(plain_checkpoint, letters_reward, args, dataset, processing_class=tokenizer)
    rendered = render_prompts(tokenizer, [prompt], kwargs)[1]
    assert trainer._tokenize_prompts([prompt])[0] == rendered
    assert (render_prompts(tokenizer, [prompt])[1] == rendered) == isinstance(prompt, str)
