"""PPOTrainer: one step equals hand-written PPO, old values stay fixed, the masks and clips work, and it learns."""

import copy
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen2ForCausalLM, Qwen2ForSequenceClassification

from hf_evidenceflow.trainers.ppo_config import PPOConfig
from hf_evidenceflow.trainers.ppo_trainer import VALUE_HEAD_NAME, PPOTrainer


def letters_reward(completions, **kwargs):
    return [float(sum(char in "abcdefgh" for char in text)) for text in completions]


@pytest.fixture
def make_trainer(plain_checkpoint, tmp_path):
    def make(reward=letters_reward, output="out", peft_config=None, model=plain_checkpoint, **overrides):
        prompts = ["Tom has 3", "Ann?", "7+2=", "abc", "d"]
        settings = {
            "output_dir": str(tmp_path / output),
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
            "disable_tqdm": True,
            "per_device_train_batch_size": 4,
            "max_steps": 2,
            "max_completion_length": 7,
            "logging_steps": 1,
            "save_strategy": "no",
            "gradient_checkpointing": False,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "seed": 3,
        }
        return PPOTrainer(
            model,
            reward,
            args=PPOConfig(**settings | overrides),
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts * 4]),
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
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-5, rtol=1e-3, msg=lambda text: f"{name}: {text}")
