"""HRPO from a latent checkpoint: thoughts whose token changes nothing get no advantage, and nothing is made anew."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from quiet_training import STEP_BY_STEP
from transformers import AutoTokenizer, Qwen2ForCausalLM

from hf_evidenceflow import HRPOConfig, HRPOTrainer, load_thinking_model
from hf_evidenceflow.trainers.idle_thoughts import idle_thoughts


PLACEHOLDER = 60
WIDE = {"thinking_residual_r_min": 0.05, "thinking_residual_r_max": 0.2}
THOUGHTS = {"thinking_count": 3, "thinking_placeholder_id": PLACEHOLDER, **WIDE}
IDLE = ["soft", "coconut", "codi", "pause"]
each_idle_mode = pytest.mark.parametrize("mode", IDLE)


def letters_reward(completions, **kwargs):
    return [float(sum(char in "abcdefgh" for char in text)) for text in completions]


@pytest.fixture
def make_trainer(plain_checkpoint, tmp_path):
    def make(mode, path=plain_checkpoint, peft=False, fields=THOUGHTS, **overrides):
        args = {
            "output_dir": str(tmp_path / "out"),
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
            "beta": 0.0,
            "seed": 3,
            **overrides,
        }
        prompts = ["Tom has 3", "Ann?", "7+2=", "abc", "d"] * 4
        torch.manual_seed(5)
        return HRPOTrainer(
            load_thinking_model(path, thinking_mode=mode, **fields),
            letters_reward,
            args=HRPOConfig(**args),
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            processing_class=AutoTokenizer.from_pretrained(plain_checkpoint),
            peft_config=LoraConfig(r=3) if peft else None,
        )

    return make


@pytest.fixture
def latent_checkpoint(plain_checkpoint, tmp_path):
    """A thinking checkpoint whose modules are at no initial values."""

    def make(mode="codi"):
        model = load_thinking_model(plain_checkpoint, thinking_mode=mode, **THOUGHTS)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "thinking" in name:
                    parameter += 0.37
        model.save_pretrained(tmp_path / "latent")
        return str(tmp_path / "latent")

    return make


def history(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


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
    gradients = [parameter.grad.flatten() for parameter in trainer.model.parameters() if parameter.grad is not None]
    return loss.item(), torch.cat(gradients)


def with_other_thoughts(inputs):
    ids = torch.where(inputs["thinking_mask"], (inputs["completion_ids"] + 17) % 80 + 3, inputs["completion_ids"])
    return {**inputs, "completion_ids": ids}


@pytest.mark.parametrize("peft", [False, True], ids=["full", "lora"])
@each_idle_mode
def test_parity_holds(make_trainer, mode, peft):
    trainer = make_trainer(mode, peft=peft)
    trainer.train()
    gaps = history(trainer, "thinking/parity_gap")
    assert len(gaps) == 2 and max(gaps) <= 1e-4


@each_idle_mode
def test_thoughts_are_out_of_the_loss_and_its_number_of_tokens(make_trainer, mode):
    trainer = make_trainer(mode)
    inputs = rollout(trainer)
    assert inputs["tool_mask"].tolist() == [[0, 0, 0, 1, 1, 1, 1]] * 4
    counted = sum(batch["completion_mask"][:, 3:].sum() for batch in trainer._buffered_inputs)
    assert inputs["num_items_in_batch"] == counted


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("mode", ["soft", "coconut"])
def test_the_token_of_a_thought_changes_neither_loss_nor_gradient(make_trainer, mode, beta):
    trainer = make_trainer(mode, beta=beta)
    inputs = rollout(trainer)
    loss, gradient = loss_and_gradient(trainer, inputs)
    other_loss, other_gradient = loss_and_gradient(trainer, with_other_thoughts(inputs))
    assert other_loss == loss and torch.equal(other_gradient, gradient)
    assert gradient.abs().max() > 0


def test_with_trained_thoughts_their_tokens_count(make_trainer):
    trainer = make_trainer("soft", train_thought_tokens=True, parity_check_steps=0)
    inputs = rollout(trainer)
    assert "tool_mask" not in inputs
    _, gradient = loss_and_gradient(trainer, inputs)
    _, other_gradient = loss_and_gradient(trainer, with_other_thoughts(inputs))
    assert (gradient - other_gradient).abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["projection", "embedding"])
def test_thoughts_whose_token_matters_are_trained(make_trainer, mode):
    assert "tool_mask" not in rollout(make_trainer(mode))


def test_a_token_that_was_not_drawn_is_not_trained(make_trainer):
    trainer = make_trainer("projection", fields={**THOUGHTS, "thinking_token_policy": "argmax"})
    assert rollout(trainer)["tool_mask"][:, :3].sum() == 0


def test_a_token_that_ends_the_text_is_no_idle_thought():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    ids = torch.tensor([[7, 1, 0], [7, 8, 9]])
    assert idle_thoughts(mask, ids, [1, 4]).tolist() == [[True, False, False], [True, True, True]]


def test_until_a_marker_the_token_that_ends_the_thinking_is_trained(make_trainer):
    # "a" to "z" are the ids from 3
    trainer = make_trainer("soft", fields={"thinking_answer_start": "a"}, max_completion_length=30)
    batches = [rollout(trainer), *trainer._buffered_inputs]
    ends = [batch["tool_mask"][batch["completion_ids"] == 3] for batch in batches]
    assert torch.cat(ends).numel() > 0 and torch.cat(ends).all()


def test_a_batch_of_idle_thoughts_alone_has_no_loss_and_finite_metrics(make_trainer):
    # Without a marker the whole completion thinks
    trainer = make_trainer("soft", fields={"thinking_answer_start": None})
    trainer.eos_token_ids = []
    trainer.train()
    rows = [value for row in trainer.state.log_history for value in row.values()]
    assert history(trainer, "loss") == [0, 0]
    assert all(value == value for value in rows)


# The reference


@pytest.mark.parametrize("peft", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("mode", ["codi", "projection"])
def test_the_reference_of_a_thinking_checkpoint_is_the_policy_that_began(make_trainer, latent_checkpoint, mode, peft):
    trainer = make_trainer(mode, path=latent_checkpoint(mode), peft=peft, beta=0.1, fields={})
    inputs = rollout(trainer)
    mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
    assert ((inputs["rollout_logps"] - inputs["ref_per_token_logps"]).abs() * mask).max() <= 1e-4


def test_the_reference_of_a_plain_checkpoint_sees_tokens_and_no_idle_thought(make_trainer, plain_checkpoint):
    trainer = make_trainer("soft", beta=0.1)
    inputs = rollout(trainer)
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    with torch.no_grad():
        logits = Qwen2ForCausalLM.from_pretrained(plain_checkpoint)(ids, attention_mask=mask).logits
    logps = logits[:, -8:-1].log_softmax(-1).gather(2, ids[:, -7:, None]).squeeze(2)
    expected = torch.where(inputs["tool_mask"] > 0, logps, 0.0)
    assert ((inputs["ref_per_token_logps"] - expected).abs() * inputs["completion_mask"]).max() <= 1e-4


# The checkpoint


@pytest.mark.parametrize("peft", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("mode", ["codi", "projection", "soft"])
def test_thinking_modules_are_those_of_the_checkpoint(make_trainer, latent_checkpoint, mode, peft):
    path = latent_checkpoint(mode)
    saved = {name: value for name, value in load_thinking_model(path).named_parameters() if "thinking" in name}
    trainer = make_trainer(mode, path=path, peft=peft, fields={})
    found = {
        name.replace("modules_to_save.default.", "").replace("base_model.model.model.", "model."): value
        for name, value in trainer.model.named_parameters()
        if "thinking" in name and "original_module" not in name
    }
    assert len(saved) == len(found) > 0
    for name, value in saved.items():
        assert torch.equal(found[name], value), name


def test_the_fields_of_the_checkpoint_stay(make_trainer, latent_checkpoint):
    config = make_trainer("codi", path=latent_checkpoint(), fields={}).model.config
    assert (config.thinking_count, config.thinking_placeholder_id) == (3, PLACEHOLDER)


def test_a_completion_that_has_no_room_for_text_is_refused(make_trainer):
    with pytest.raises(ValueError, match="`max_completion_length=3` leaves no token of text"):
        make_trainer("coconut", max_completion_length=3)


def test_with_a_count_a_marker_out_of_reach_does_not_matter(make_trainer):
    make_trainer("soft", fields={**THOUGHTS, "thinking_answer_start": "€"})


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [
        (
            "soft",
            "for the first 3 tokens of a completion, the input of each token is a state of the model in the place",
        ),
        ("projection", "for the first 3 tokens of a completion, the input of each token is its embedding mixed with"),
        ("pause", "It pauses before it writes: for the first 3 tokens of a completion, its tokens are placeholders"),
    ],
)
def test_the_model_card_says_how_it_thinks(make_trainer, mode, sentence):
    assert sentence in make_trainer(mode)._card_content(None, None, None, None).summary
