"""What latent training learns in a minute, and that decoding finds it: stock `generate`, from disk, in the engine."""

import itertools
import random

import pytest
import torch
from quiet_training import QUIET
from transformers import AutoTokenizer, TrainerCallback

from hf_evidenceflow import (
    LatentSFTConfig,
    LatentSFTTrainer,
    RolloutEngine,
    ThinkingIntervention,
    ThinkingQwen2Config,
    ThinkingQwen2ForCausalLM,
    collect_thinking,
    load_thinking_model,
)
from hf_evidenceflow.tasks.generated import word_level_tokenizer
from hf_evidenceflow.tasks.set_tracking import build_set_tokenizer, split_set_problems


MOVES = 4
PROBLEMS = {"moves": MOVES, "optional": 2, "seed": 0}


def small_model(tokenizer, **fields):
    torch.manual_seed(0)
    config = ThinkingQwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **fields,
    )
    return ThinkingQwen2ForCausalLM(config)


def train(folder, tokenizer, rows, callbacks=(), **settings):
    defaults = {
        "per_device_train_batch_size": 32,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "logging_steps": 50,
        "save_strategy": "no",
        "answer_template": "####{answer}",
        "step_separator": "",
        "seed": 0,
    }
    args = LatentSFTConfig(str(folder), **QUIET | defaults | settings)
    trainer = LatentSFTTrainer(
        small_model(tokenizer, thinking_mode="none"),
        args=args,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
    trainer.train()
    trainer.model.eval()
    return trainer


def completions(model, tokenizer, rows, engine=None):
    """Greedy ones, as lists of ids."""
    inputs = tokenizer([row["prompt"] for row in rows], return_tensors="pt", padding=True)
    with collect_thinking(engine=engine):
        output = model.generate(**inputs, tokenizer=tokenizer, max_new_tokens=MOVES + 4, do_sample=False)
    return [ids[inputs["input_ids"].shape[1] :].tolist() for ids in output]


def right(completion, tokenizer, row):
    return tokenizer.decode(completion, skip_special_tokens=True).endswith(f"####{row['answer']}")


def accuracy(model, tokenizer, rows, **kwargs):
    found = completions(model, tokenizer, rows, **kwargs)
    return sum(right(ids, tokenizer, row) for ids, row in zip(found, rows)) / len(rows)


@torch.no_grad()
def own_accuracy(trainer, rows):
    """Of the trainer's own pass, without target states: marker, cup and end of text are the likeliest tokens."""
    batch = trainer._compose(list(trainer._read(rows, trainer.args, "test")))
    logits = trainer.model(**{k: batch[k] for k in ("input_ids", "attention_mask", "latent_mask")}).logits[:, :-1]
    labels = batch["labels"][:, 1:].masked_fill(batch["latent_mask"][:, 1:], -100)
    return ((logits.argmax(-1) == labels) | (labels == -100)).all(1).double().mean().item()


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Trainer, tokenizer, test problems and the folder of the checkpoint, of four moves under soft targets."""
    folder = tmp_path_factory.mktemp("soft")
    parts, tokenizer = split_set_problems(4000, 300, **PROBLEMS), build_set_tokenizer()
    settings = {"thinking_mode": "soft", "teacher_forcing_steps": 0.5, "max_steps": 500}
    trainer = train(folder, tokenizer, parts["train"], **settings)
    trainer.save_model()
    return trainer, tokenizer, parts["test"], folder


@pytest.mark.slow
def test_soft_targets_learn_four_moves_of_set_tracking(learned):
    trainer, tokenizer, rows, _ = learned
    assert accuracy(trainer.model, tokenizer, rows) >= 0.9


@pytest.mark.slow
def test_generate_has_the_accuracy_of_the_trainers_own_pass(learned):
    """To one problem of 300: on a CPU decoding leaves out the unlikeliest tokens of a state."""
    trainer, tokenizer, rows, _ = learned
    assert accuracy(trainer.model, tokenizer, rows) == pytest.approx(own_accuracy(trainer, rows), abs=0.0034)


@pytest.mark.slow
def test_the_checkpoint_from_disk_writes_what_the_model_did(learned):
    trainer, tokenizer, rows, folder = learned
    loaded = load_thinking_model(str(folder)).eval()
    expected = completions(trainer.model, tokenizer, rows)
    assert completions(loaded, AutoTokenizer.from_pretrained(folder), rows) == expected


@pytest.mark.slow
def test_the_rollout_engine_writes_what_generate_does(learned):
    trainer, tokenizer, rows, _ = learned
    found = completions(trainer.model, tokenizer, rows, engine=RolloutEngine())
    for ids, expected in zip(found, completions(trainer.model, tokenizer, rows), strict=True):
        end = expected.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in expected else len(expected)
        assert ids[:end] == expected[:end]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["off", "zero", "shuffle"])
def test_without_its_states_it_does_not_know_the_answer(learned, kind):
    trainer, tokenizer, rows, _ = learned
    with ThinkingIntervention(kind):
        assert accuracy(trainer.model, tokenizer, rows) < 0.8


# Chains of two steps: a cup, moved twice; the problems of the test are not in the training


def chain_problems():
    rng = random.Random(0)
    moves = {letter: rng.sample(range(8), 8) for letter in "ABCDEF"}
    rows = []
    for start, first, second in itertools.product(range(8), moves, moves):
        middle = moves[first][start]
        end = moves[second][middle]
        rows.append({"prompt": f"c{start}{first}{second}", "steps": [f"c{middle}", f"c{end}"], "answer": f"c{end}"})
    rng.shuffle(rows)
    return rows[:48], rows[48:]


CHAINS = {
    "answer": {"thinking_mode": "coconut", "latent_curriculum": [0, 1, 2], "max_steps": 900},
    # With a weight of 1 a model from scratch draws its hidden states together before it can write the chain
    "distill": {
        "thinking_mode": "codi",
        "thinking_count": 2,
        "distill_weight": 0.03,
        "max_steps": 900,
        "seed": 1,
    },
}


class EndsWhenLearned(TrainerCallback):
    """Looks every 50 steps, from the last stage of the curriculum on."""

    def __init__(self, tokenizer, problems, first_step):
        self.tokenizer, self.problems, self.first_step = tokenizer, problems, first_step

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step > self.first_step and state.global_step % 50 == 0:
            model.eval()
            control.should_training_stop = accuracy(model, self.tokenizer, self.problems) >= 0.95
            model.train()


@pytest.mark.slow
@pytest.mark.parametrize("objective", CHAINS)
def test_it_learns_chains_of_two_steps(tmp_path, objective):
    test, rows = chain_problems()
    tokenizer = word_level_tokenizer([*(f"c{cup}" for cup in range(8)), *"ABCDEF", "####"], r"c[0-9]|####|.")
    settings = {"learning_rate": 3e-3, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 20}
    callbacks = [EndsWhenLearned(tokenizer, test, first_step=600 if objective == "answer" else 0)]
    trainer = train(tmp_path, tokenizer, rows, callbacks, objective=objective, **settings | CHAINS[objective])
    assert accuracy(trainer.model, tokenizer, test) >= 0.9
