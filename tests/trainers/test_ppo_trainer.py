"""PPOTrainer: one step equals hand-written PPO, old values stay fixed, the masks and clips work, and it learns."""

import copy
import inspect
import math

import pytest
import torch
from datasets import Dataset
from hostile_generation import make_hostile
from peft import LoraConfig
from quiet_training import STEP_BY_STEP
from safetensors.torch import load_file
from tiny_models import TINY
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification
from trl import GRPOTrainer

from hf_evidenceflow import load_thinking_model
from hf_evidenceflow.tasks import gsm8k_reward
from hf_evidenceflow.trainers.ppo_config import PPOConfig
from hf_evidenceflow.trainers.ppo_trainer import PPOTrainer
from hf_evidenceflow.trainers.value_head import VALUE_HEAD_NAME


def letters_reward(completions, **kwargs):
    return [float(sum(char in "abcdefgh" for char in text)) for text in completions]


@pytest.fixture
def make_trainer(plain_checkpoint, tmp_path):
    def make(reward=letters_reward, output="out", peft_config=None, model=plain_checkpoint, **overrides):
        prompts = ["Tom has 3", "Ann?", "7+2=", "abc", "d"]
        settings = {
            "output_dir": str(tmp_path / output),
            **STEP_BY_STEP,
            "per_device_train_batch_size": 4,
            "max_steps": 2,
            "max_completion_length": 7,
            "save_strategy": "no",
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "seed": 3,
        }
        return PPOTrainer(
            model,
            reward,
            args=PPOConfig(**settings | overrides),
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts * 8]),
            processing_class=AutoTokenizer.from_pretrained(plain_checkpoint),
            peft_config=peft_config,
        )

    return make


def rollout(trainer, count=4):
    """One rollout of the trainer, and its minibatch as `_compute_loss` gets it."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    rows = [trainer.train_dataset[index] for index in range(count)]
    return trainer._generate_and_score_completions(rows)


def test_rollouts_do_not_follow_the_checkpoints_generation_config(make_trainer):
    trainer, completions = make_trainer(), []
    for _ in range(2):
        torch.manual_seed(0)
        completions.append(trainer._generate_single_turn([[5, 9], [7]] * 2, None, {}, 1)[0])
        make_hostile(trainer.model)
    assert completions[0] == completions[1]


def naive_loss(trainer, batch, scores):
    """PPO of one minibatch with loops over rows and tokens, from the model's plain logits."""
    args, model = trainer.args, trainer.model
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    start = batch["prompt_ids"].shape[1]
    output = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    reference = trainer.ref_model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    logps = output.logits.log_softmax(-1)
    values = model.value_head(output.hidden_states[-1])[..., 0]
    rows = []
    for row, length in enumerate(batch["completion_mask"].sum(1).tolist()):
        places = range(start, start + length)
        logp = [logps[row, place - 1, ids[row, place]] for place in places]
        ref = [reference[row, place - 1, ids[row, place]] for place in places]
        value = [values[row, place - 1] for place in places]
        reward = [-args.beta * (a - b).item() for a, b in zip(logp, ref)]
        reward[-1] += scores[row]
        fixed = [v.item() for v in value] + [0.0]
        deltas = [reward[t] + args.gamma * fixed[t + 1] - fixed[t] for t in range(length)]
        advantage = [
            sum((args.gamma * args.lam) ** (k - t) * deltas[k] for k in range(t, length)) for t in range(length)
        ]
        rows += [
            (logp[t], logp[t].item(), advantage[t], value[t], fixed[t], advantage[t] + fixed[t]) for t in range(length)
        ]
    advantages = torch.tensor([row[2] for row in rows])
    white = (advantages - advantages.mean()) / advantages.std()
    loss = 0.0
    for (logp, old, _, value, old_value, target), a in zip(rows, white.tolist()):
        ratio = (logp - old).exp()
        loss = loss + max(-a * ratio, -a * ratio.clamp(1 - args.epsilon, 1 + args.epsilon))
        near = old_value + (value - old_value).clamp(-args.cliprange_value, args.cliprange_value)
        loss = loss + args.vf_coef * 0.5 * max((value - target) ** 2, (near - target) ** 2)
    return loss / len(rows)


def test_a_step_equals_hand_written_ppo(make_trainer):
    trainer = make_trainer(beta=0.3, gamma=0.9, lam=0.8, vf_coef=0.7)
    torch.manual_seed(1)
    torch.nn.init.normal_(trainer.model.value_head.weight, std=0.3)
    with torch.no_grad():
        trainer.model.lm_head.weight.mul_(1.1)  # away from the reference
    batch = rollout(trainer)
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    names, parameters = zip(*trainer.model.named_parameters())
    gradients = [parameter.grad.clone() for parameter in parameters]
    trainer.model.zero_grad()
    expected = naive_loss(trainer, batch, trainer._scores.tolist())
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-4)
    for name, gradient, parameter in zip(names, gradients, parameters):
        assert torch.allclose(gradient, parameter.grad, atol=1e-5, rtol=1e-3), name


@pytest.mark.parametrize("settings", [{}, {"num_generations": 4}, {"update_max_tokens": 20}], ids=str)
def test_the_update_without_padding_is_the_padded_one(make_trainer, settings):
    trainer = make_trainer(beta=0.3, **settings)
    torch.nn.init.normal_(trainer.model.value_head.weight, std=0.3)
    with torch.no_grad():
        trainer.model.lm_head.weight.mul_(1.1)  # away from the reference
    found = []
    for trainer.args.share_prompts_in_update in (True, False):
        torch.manual_seed(7)
        batch = rollout(trainer)
        batch["old_per_token_logps"] = batch["old_per_token_logps"] - 0.1
        trainer.model.zero_grad()
        loss = trainer._compute_loss(trainer.model, batch)
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in trainer.model.named_parameters()}
        mask = batch["completion_mask"]
        found.append({"loss": loss.detach(), "old_values": batch["old_values"] * mask, **gradients})
        found[-1] |= {name: batch[name] * mask for name in ("old_per_token_logps", "ref_per_token_logps", "returns")}
    assert (trainer._packing, found[0]["old_values"].abs().max() > 0.1) == (True, True)
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


def test_the_first_update_of_a_rollout_has_ratio_1(make_trainer):
    trainer = make_trainer(num_iterations=1)
    trainer.train()
    assert [row["approx_kl"] for row in trainer.state.log_history if "approx_kl" in row] == [0.0, 0.0]


def test_old_log_probabilities_and_values_stay_fixed_through_all_epochs(make_trainer):
    trainer = make_trainer(num_iterations=3, per_device_train_batch_size=2, generation_batch_size=4, max_steps=6)
    seen = []
    compute_loss = trainer._compute_loss

    def record(model, inputs):
        seen.append({name: inputs[name].clone() for name in ("completion_ids", "old_per_token_logps", "old_values")})
        return compute_loss(model, inputs)

    trainer._compute_loss = record
    trainer.train()
    for first, later in zip(seen[:2] * 2, seen[2:]):
        assert all(torch.equal(first[name], later[name]) for name in first)
    drift = [row["approx_kl"] for row in trainer.state.log_history if "approx_kl" in row]
    assert drift[0] == 0 and min(drift[1:]) > 0


def test_two_seeded_runs_are_the_same(make_trainer):
    losses = []
    for output in ("one", "two"):
        trainer = make_trainer(output=output, max_steps=3)
        trainer.train()
        losses.append([row["policy_loss"] for row in trainer.state.log_history if "policy_loss" in row])
    assert len(losses[0]) == 3 and losses[0] == losses[1]


def test_what_stands_outside_the_mask_changes_no_loss(make_trainer):
    trainer = make_trainer()
    batch = rollout(trainer)
    batch["loss_mask"][:, 4:] = 0
    batch["loss_mask"][1] = 0
    before = trainer._compute_loss(trainer.model, batch).item()
    outside = batch["loss_mask"] == 0
    for name in ("advantages", "returns", "old_values", "old_per_token_logps"):
        batch[name] = torch.where(outside, 50.0, batch[name])
    assert trainer._compute_loss(trainer.model, batch).item() == before


def test_a_completion_that_no_function_scores_changes_no_advantage(make_trainer):
    def some(completions, **kwargs):
        return [None if index == 1 else 2.0 + index for index in range(len(completions))]

    trainer = make_trainer(reward=some)
    batch = rollout(trainer)
    assert batch["loss_mask"][1].sum() == 0
    assert batch["advantages"][1].abs().sum() == 0
    assert batch["num_items_in_batch"] == batch["completion_mask"][[0, 2, 3]].sum()


def test_accumulated_minibatches_give_the_gradient_of_the_whole(make_trainer):
    gradients = []
    for name, size, accumulation in (("whole", 4, 1), ("parts", 1, 4)):
        trainer = make_trainer(output=name, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation)
        batch = rollout(trainer)
        trainer.current_gradient_accumulation_steps = accumulation
        rows = [slice(None)] if size == 4 else [slice(row, row + 1) for row in range(4)]
        for part in rows:
            inputs = {key: value[part] if value.ndim else value for key, value in batch.items()}
            trainer._compute_loss(trainer.model, inputs).backward()
        gradients.append([parameter.grad for parameter in trainer.model.parameters()])
    for whole, parts in zip(*gradients):
        torch.testing.assert_close(whole, parts, atol=1e-6, rtol=1e-4)


def test_a_minibatch_counts_as_its_share_of_the_rollout(make_trainer):
    trainer = make_trainer(per_device_train_batch_size=2, generation_batch_size=4)
    batch = rollout(trainer)
    parts = [
        {key: value[part] if value.ndim else value for key, value in batch.items()}
        for part in (slice(0, 2), slice(2, 4))
    ]
    losses = [trainer._compute_loss(trainer.model, part).item() for part in parts]
    trainer.args.steps_per_generation = 1
    whole = trainer._compute_loss(trainer.model, batch).item()
    assert sum(losses) / 2 == pytest.approx(whole, rel=1e-4)


def test_the_ratio_clip_takes_the_gradient_of_tokens_that_went_too_far(make_trainer):
    trainer = make_trainer(vf_coef=0.0, beta=0.0)
    batch = rollout(trainer)
    batch["old_per_token_logps"] = batch["old_per_token_logps"] - 1.0  # a ratio of e
    batch["advantages"] = torch.ones_like(batch["advantages"])
    trainer._compute_loss(trainer.model, batch).backward()
    assert all(
        parameter.grad.abs().max() == 0 for parameter in trainer.model.parameters() if parameter.grad is not None
    )
    assert trainer._metrics["train"]["clip_fraction"][-1] == 1


def test_the_value_clip_takes_the_gradient_of_values_that_went_too_far(make_trainer):
    trainer = make_trainer(beta=0.0)
    batch = rollout(trainer)
    batch["advantages"] = torch.zeros_like(batch["advantages"])
    batch["old_values"], batch["returns"] = batch["old_values"] - 1.0, batch["returns"] * 0 + 0.5
    trainer._compute_loss(trainer.model, batch).backward()
    assert trainer.model.value_head.bias.grad.abs().max() == 0
    trainer.args.cliprange_value = math.inf
    trainer._compute_loss(trainer.model, batch).backward()
    assert trainer.model.value_head.bias.grad.abs().max() > 0


def test_the_kl_penalty_stands_in_the_reward_or_in_the_loss(make_trainer):
    losses, returns = [], []
    for in_reward in (True, False):
        trainer = make_trainer(output=f"kl-{in_reward}", beta=0.5, kl_in_reward=in_reward)
        with torch.no_grad():
            trainer.model.lm_head.weight.mul_(1.2)  # away from the reference
        batch = rollout(trainer)
        losses.append(trainer._compute_loss(trainer.model, batch).item())
        returns.append(batch["returns"][:, 0])
        terminal = trainer._scores
    assert not torch.allclose(returns[0], terminal)
    assert losses[0] != losses[1]
    # Without a penalty in the rewards, and with values of 0, the return discounted by lambda ends in the score
    lengths = batch["completion_mask"].sum(1)
    torch.testing.assert_close(returns[1], 0.95 ** (lengths - 1) * terminal)


def test_the_value_of_a_token_belongs_to_the_state_before_it(make_trainer):
    trainer = make_trainer()
    torch.nn.init.normal_(trainer.model.value_head.weight)
    batch = rollout(trainer)
    changed = {**batch, "completion_ids": batch["completion_ids"].clone()}
    changed["completion_ids"][:, 3] = 5
    with torch.no_grad():
        before, after = (trainer._logps_and_values(trainer.model, inputs)[1] for inputs in (batch, changed))
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4], after[:, 4])


def test_the_engine_and_the_stock_loop_give_the_same_greedy_rollout(make_trainer):
    rollouts = []
    for uses in (True, False):
        trainer = make_trainer(
            output=f"engine-{uses}", use_rollout_engine=uses, generation_kwargs={"do_sample": False}
        )
        rollouts.append(rollout(trainer)["completion_ids"])
    assert torch.equal(*rollouts)


def test_a_reward_model_scores_the_completions(make_trainer, plain_checkpoint):
    reward_model = Qwen2ForSequenceClassification.from_pretrained(plain_checkpoint, num_labels=1)
    trainer = make_trainer(reward=reward_model)
    rollout(trainer)
    assert trainer._scores.unique().numel() > 1


def test_the_saved_folder_is_a_plain_causal_lm_next_to_its_value_head(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.train()
    trainer.save_model()
    _, info = Qwen2ForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["unexpected_keys"]
    head = load_file(tmp_path / "out" / VALUE_HEAD_NAME)
    assert torch.equal(head["weight"], trainer.model.value_head.weight)
    assert head["weight"].abs().max() > 0


def test_the_code_of_a_model_of_ours_is_saved_with_it(make_trainer, plain_checkpoint, tmp_path):
    trainer = make_trainer(model=load_thinking_model(plain_checkpoint, thinking_mode="none"), beta=0.0)
    trainer.save_model()
    assert (tmp_path / "out" / "modeling_thinking_qwen2.py").exists()


def test_the_parameters_have_the_names_and_the_order_of_grpo():
    own, grpo = (list(inspect.signature(trainer).parameters) for trainer in (PPOTrainer, GRPOTrainer))
    assert own[:5] == grpo[:5] and own[5] in grpo and own[6:] == ["kwargs"]


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(make_trainer, tmp_path):
    settings = {"num_iterations": 2, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(output="whole", **settings)
    whole.train()
    resumed = make_trainer(output="resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters()):
        torch.testing.assert_close(one, other)


def test_an_adapter_is_trained_with_the_head_and_the_base_is_its_reference(make_trainer, tmp_path):
    trainer = make_trainer(peft_config=LoraConfig(r=2, target_modules=["q_proj"]), beta=0.1)
    before = copy.deepcopy(trainer.model.get_base_model().lm_head.weight)
    trainer.train()
    trainer.save_model()
    assert trainer.model.value_head.weight.abs().max() > 0
    assert torch.equal(before, trainer.model.get_base_model().lm_head.weight)
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    kl = [row["kl"] for row in trainer.state.log_history if "kl" in row]
    assert kl[0] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_ppo_improves_the_reward_and_the_penalty_bounds_the_kl(make_trainer):
    rewards, kls = {}, {}
    for beta in (0.02, 2.0):
        trainer = make_trainer(
            output=f"beta-{beta}",
            beta=beta,
            max_steps=120,
            num_iterations=2,
            per_device_train_batch_size=16,
            generation_batch_size=32,
            learning_rate=2e-3,
            gamma=1.0,
        )
        trainer.train()
        for name, curves in (("reward", rewards), ("kl", kls)):
            curves[beta] = [row[name] for row in trainer.state.log_history if row.get(name) is not None]
    start, end = sum(rewards[0.02][:3]) / 3, sum(rewards[0.02][-3:]) / 3
    assert end > start + 1, rewards[0.02]
    assert max(kls[2.0][-3:]) < 0.2 < max(kls[0.02][-3:]), kls


@pytest.mark.parametrize(
    "setting, value",
    [
        ("gamma", 1.5),
        ("lam", -0.1),
        ("vf_coef", -1.0),
        ("cliprange_value", 0.0),
        ("update_max_tokens", 0),
        ("loss_type", "grpo"),
    ],
)
def test_a_setting_out_of_its_range_is_an_error_with_its_value(tmp_path, setting, value):
    with pytest.raises(ValueError, match=f"{setting}.*{value}"):
        PPOConfig(str(tmp_path), use_cpu=True, bf16=False, **{setting: value})


def test_a_penalty_without_a_reference_model_is_an_error(make_trainer):
    model = Qwen2ForCausalLM(Qwen2Config(**TINY))
    with pytest.raises(ValueError, match="beta=0.05"):
        make_trainer(model=model)


def test_fewer_prompts_than_a_rollout_takes_are_an_error(make_trainer):
    with pytest.raises(ValueError, match="64.*40"):
        make_trainer(generation_batch_size=64)


def test_missing_column_of_golds_is_refused_before_training(make_trainer):
    with pytest.raises(ValueError, match="no column `answer`, by which `gsm8k_reward` grades"):
        make_trainer(reward=gsm8k_reward)
