"""LatentSFTTrainer: its losses against hand computations, SFTTrainer and one big batch, and whatever it is given."""

import math

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from latent_models import naive_row
from latent_trainers import OBJECTIVES, STEPS, TARGETS, make_latent_trainer, make_thinking_model, weights_of
from peft import LoraConfig, PeftModel, get_peft_model
from quiet_training import STEP_BY_STEP
from transformers import AutoTokenizer, Qwen2ForCausalLM
from trl import SFTConfig, SFTTrainer

from hf_evidenceflow import HRPOConfig, HRPOTrainer, LatentSFTConfig, LatentSFTTrainer, load_thinking_model


LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
PLAIN = {"objective": "answer", "latent_curriculum": [0]}


def losses(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def batch_of(trainer, rows=None):
    return trainer._compose(list(trainer.train_dataset)[:rows])


def first_gradient(trainer):
    """Of one optimizer step, with whatever batches it has."""
    found = {}

    def keep(optimizer, *args):
        model = trainer.accelerator.unwrap_model(trainer.model)
        found.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(keep)
    trainer.train()
    return found


def assert_close(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], msg=lambda text, n=name: f"{n}: {text}", **tolerance)


# Losses


def plain_rows(rows):
    return [
        {"prompt": row["prompt"], "completion": "".join(f"{s}\n" for s in row.get("steps", [])) + f"={row['answer']}"}
        for row in rows
    ]


@pytest.mark.parametrize("objective, rows", [("answer", STEPS), ("soft_targets", TARGETS[2:3])])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_without_thoughts_it_is_sft_trainer_bit_for_bit(tmp_path, tokenizer, objective, rows, accumulation):
    rows = rows * 3
    settings = {"max_steps": 3, "gradient_accumulation_steps": accumulation, "eval_strategy": "steps", "eval_steps": 2}
    curriculum = {"latent_curriculum": [0]} if objective == "answer" else {}
    ours = make_latent_trainer(
        tmp_path, tokenizer, objective, rows, make_thinking_model(), eval_dataset=rows[:3], **curriculum, **settings
    )
    ours.train()
    args = SFTConfig(
        str(tmp_path / "sft"),
        **STEP_BY_STEP,
        **settings,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        save_strategy="no",
        seed=3,
    )
    data = [plain_rows(rows), plain_rows(rows[:3])]
    from datasets import Dataset

    stock = SFTTrainer(make_thinking_model(), args, None, *map(Dataset.from_list, data), processing_class=tokenizer)
    stock.train()
    assert losses(ours) == losses(stock) and len(losses(ours)) == 3
    evaluations = [
        [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row] for trainer in (ours, stock)
    ]
    assert evaluations[0] == evaluations[1] != []
    expected = weights_of(stock)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights_of(ours).items())


def test_a_batch_without_thoughts_beside_others_is_sft_trainers(tmp_path, tokenizer):
    trainer = make_latent_trainer(tmp_path, tokenizer, rows=TARGETS)
    batch = trainer._compose([trainer.train_dataset[2]])
    assert "latent_mask" not in batch
    plain = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    expected = SFTTrainer.compute_loss(trainer, trainer.model, dict(plain))
    assert torch.equal(trainer.compute_loss(trainer.model, batch), expected)


def soft_numbers(model, rows, weight=1.0):
    """Summed loss, number of thoughts and tokens, KL of each thought, cross-entropies, of rows in fp64."""
    divergences, entropies = [], []
    for row in rows:
        count = len(row["target_ids"])
        logits, _ = naive_row(model, row["prompt_ids"], count, row["answer_ids"])
        logps = logits.log_softmax(-1)[len(row["prompt_ids"]) - 1 :]
        for thought in range(count):
            target = torch.zeros(logps.shape[1], dtype=logps.dtype)
            target[row["target_ids"][thought]] = torch.tensor(row["target_weights"][thought], dtype=logps.dtype)
            divergences.append(F.kl_div(logps[thought], target, reduction="sum"))
        entropies += [-logps[count + i, token] for i, token in enumerate(row["answer_ids"])]
    return divergences, entropies


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_loss_of_soft_targets_is_the_mean_over_thoughts_and_text_tokens(tmp_path, tokenizer, weight):
    trainer = make_latent_trainer(tmp_path, tokenizer, soft_target_weight=weight)
    trainer.model.double()
    divergences, entropies = soft_numbers(trainer.model, trainer.train_dataset)
    expected = (weight * sum(divergences) + sum(entropies)) / (len(divergences) + len(entropies))
    assert len(divergences) == 6
    found = trainer.compute_loss(trainer.model, batch_of(trainer))
    torch.testing.assert_close(found, expected.to(found), atol=1e-5, rtol=1e-5)


def test_the_log_has_each_thoughts_divergence(tmp_path, tokenizer):
    """Of rows with 2, 3, 0 and 1 thoughts: the first thought is that of each row, wherever it stands in the batch."""
    trainer = make_latent_trainer(tmp_path, tokenizer)
    trainer.model.double()
    divergences, entropies = soft_numbers(trainer.model, trainer.train_dataset)
    trainer.compute_loss(trainer.model, batch_of(trainer))
    log = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    numbers = [[0, 2, 5], [1, 3], [4]]
    for number, members in enumerate(numbers, 1):
        expected = sum(divergences[index] for index in members) / len(members)
        assert log[f"latent/kl_{number}"] == pytest.approx(expected.item(), rel=1e-4)
    assert log["latent/kl"] == pytest.approx((sum(divergences) / 6).item(), rel=1e-4)
    assert log["latent/answer_loss"] == pytest.approx((sum(entropies) / len(entropies)).item(), rel=1e-4)
    assert 0 < log["latent/target_share"] < 1
    assert "latent/kl_4" not in log


def test_thoughts_are_taught_by_their_targets_in_the_first_steps_only(tmp_path, tokenizer, monkeypatch):
    trainer = make_latent_trainer(tmp_path, tokenizer, rows=TARGETS[:2] * 2, teacher_forcing_steps=0.5)
    seen = []
    forward = trainer.model.forward
    monkeypatch.setattr(
        trainer.model,
        "forward",
        lambda *args, **kw: (seen.append(kw["latent_targets"] is None), forward(*args, **kw))[1],
    )
    trainer.train()
    assert seen == [False] * 3 + [True] * 3


def test_an_evaluation_is_not_taught(tmp_path, tokenizer):
    settings = {"eval_dataset": TARGETS, "per_device_eval_batch_size": 4}
    taught = make_latent_trainer(tmp_path, tokenizer, teacher_forcing_steps=10, **settings)
    alone = make_latent_trainer(tmp_path, tokenizer, **settings)
    assert taught.evaluate()["eval_loss"] == alone.evaluate()["eval_loss"]


@pytest.mark.parametrize("mode", ["soft", "embedding", "none"])
def test_a_taught_step_has_the_loss_of_the_naive_loop_over_target_states(tmp_path, tokenizer, mode):
    """With one-hot targets: the states are embeddings and the tokens are known, in each mode."""
    rows = [dict(row, thought_targets=[{max(t, key=t.get): 1.0} for t in row["thought_targets"]]) for row in TARGETS]
    trainer = make_latent_trainer(
        tmp_path, tokenizer, rows=rows, thinking_mode=mode, teacher_forcing_steps=10, thinking_token_policy=None
    )
    model, words = trainer.model.double(), trainer.model.get_input_embeddings().weight
    total = count = 0
    for row in trainer.train_dataset:
        tokens = [ids[0] for ids in row["target_ids"]]
        ids = torch.tensor([row["prompt_ids"] + tokens + row["answer_ids"]])
        states = words[ids[:, len(row["prompt_ids"]) :]]
        mask = torch.arange(states.shape[1])[None] < len(tokens)
        logits = model(ids, thinking_states=states, thinking_mask=mask).logits[0, len(row["prompt_ids"]) - 1 : -1]
        labels = torch.tensor(tokens + row["answer_ids"])
        total, count = total + F.cross_entropy(logits, labels, reduction="sum"), count + len(labels)
    found = trainer.compute_loss(model.train(), batch_of(trainer))
    torch.testing.assert_close(found, (total / count).to(found), atol=1e-5, rtol=1e-5)


def test_the_loss_of_answer_is_that_of_the_text_that_is_left(tmp_path, tokenizer):
    trainer = make_latent_trainer(tmp_path, tokenizer, "answer", latent_tokens_per_step=2)
    trainer.state.global_step = 2
    trainer.curriculum.at(2, 6)  # the stage of one step
    trainer.model.double()
    batch = trainer._compose(list(trainer.train_dataset))
    losses = []
    for row in trainer.train_dataset:
        text = [token for step in row["step_ids"][1:] for token in step] + row["answer_ids"]
        placeholder = trainer.model.config.thinking_placeholder_id
        assert placeholder not in row["prompt_ids"] + text
        logits = naive_row(trainer.model, row["prompt_ids"], 2, text)[0][len(row["prompt_ids"]) + 1 : -1]
        losses += F.cross_entropy(logits, torch.tensor(text), reduction="none")
    found = trainer.compute_loss(trainer.model, batch)
    torch.testing.assert_close(found, torch.stack(losses).mean().to(found), atol=1e-5, rtol=1e-5)


def test_the_loss_of_distill_is_both_texts_and_the_distance_before_the_answer(tmp_path, tokenizer):
    trainer = make_latent_trainer(tmp_path, tokenizer, "distill", distill_weight=0.7)
    model = trainer.model.double()
    answers, chains, students, teachers = [], [], [], []
    for row in trainer.train_dataset:
        prompt, answer = row["prompt_ids"], row["answer_ids"]
        chain = [token for step in row["step_ids"] for token in step] + answer
        ids = torch.tensor([prompt + chain])
        teacher = model(ids, output_hidden_states=True)
        logits = naive_row(model, prompt, 2, answer)[0]
        chains += F.cross_entropy(teacher.logits[0, len(prompt) - 1 : -1], torch.tensor(chain), reduction="none")
        answers += F.cross_entropy(logits[len(prompt) + 1 : -1], torch.tensor(answer), reduction="none")
        # Before the answer stands the marker, one token
        teachers.append([layer[0, len(ids[0]) - len(answer)] for layer in teacher.hidden_states])
        latent = torch.tensor([[*prompt, 0, 0, *answer]])
        mask = torch.zeros_like(latent, dtype=torch.bool)
        mask[0, len(prompt) : len(prompt) + 2] = True
        student = model(latent, latent_mask=mask, output_hidden_states=True)
        students.append([layer[0, len(prompt) + 2] for layer in student.hidden_states])
    distance = 0
    for ours, theirs in zip(zip(*students), zip(*teachers)):
        ours, theirs = torch.stack(ours), torch.stack(theirs).detach()
        distance += (ours - theirs).abs().mean() / theirs.std().clamp(min=1e-6) / len(teachers[0])
    expected = torch.stack(answers).mean() + torch.stack(chains).mean() + 0.7 * distance
    found = trainer.compute_loss(model, batch_of(trainer))
    assert distance > 0.1
    torch.testing.assert_close(found, expected.to(found), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("objective", ["soft_targets", "answer"])
def test_accumulated_gradients_are_those_of_the_big_batch(tmp_path, tokenizer, objective):
    gradients = []
    for size, accumulation in ((4, 1), (1, 4), (2, 2)):
        trainer = make_latent_trainer(
            tmp_path,
            tokenizer,
            objective,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            max_grad_norm=0.0,
            **({"latent_curriculum": [1]} if objective == "answer" else {}),
        )
        gradients.append(first_gradient(trainer))
    for other in gradients[1:]:
        assert_close(other, gradients[0], atol=1e-6, rtol=1e-4)


def test_distill_takes_the_mean_over_the_batches_of_a_step(tmp_path, tokenizer):
    rows, whole = STEPS[:2], []
    for batches in ([rows], [rows[:1]], [rows[1:]]):
        trainer = make_latent_trainer(tmp_path, tokenizer, "distill", batches[0], max_steps=1, max_grad_norm=0.0)
        whole.append(first_gradient(trainer))
    one_by_one = first_gradient(
        make_latent_trainer(
            tmp_path,
            tokenizer,
            "distill",
            rows,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=2,
            max_steps=1,
            max_grad_norm=0.0,
        )
    )
    mean = {name: (whole[1][name] + whole[2][name]) / 2 for name in whole[1]}
    assert_close(one_by_one, mean, atol=1e-6, rtol=1e-4)


# Evaluation


@pytest.mark.parametrize("objective", ["soft_targets", "answer"])
def test_evaluation_has_the_mean_loss_of_its_batches(tmp_path, tokenizer, objective):
    """Three rows in batches of two, weighted by rows as in Trainer, and the metrics under `eval_`."""
    rows = OBJECTIVES[objective][0]
    rows = [rows[0], rows[1], rows[3]]
    trainer = make_latent_trainer(
        tmp_path,
        tokenizer,
        objective,
        eval_dataset=rows,
        per_device_eval_batch_size=2,
        eval_strategy="steps",
        eval_steps=3,
        max_steps=3,
        gradient_accumulation_steps=2,
        **({"latent_curriculum": [1]} if objective == "answer" else {}),
    )
    trainer.train()
    row = next(row for row in trainer.state.log_history if "eval_loss" in row)
    trainer.model.eval()
    with torch.no_grad():
        data = list(trainer.eval_dataset)
        parts = [trainer.compute_loss(trainer.model, trainer._compose(part)) for part in (data[:2], data[2:])]
    assert row["eval_loss"] == pytest.approx(((2 * parts[0] + parts[1]) / 3).item(), rel=1e-5)
    assert math.isfinite(row["eval_latent/answer_loss"])
    assert ("eval_latent/kl_3" in row) == (objective == "soft_targets")


def test_evaluation_of_distill_does_not_depend_on_accumulation(tmp_path, tokenizer):
    found = []
    for accumulation in (1, 2):
        trainer = make_latent_trainer(
            tmp_path,
            tokenizer,
            "distill",
            eval_dataset=STEPS,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            learning_rate=0.0,
        )
        trainer.train()
        found.append(trainer.evaluate()["eval_loss"])
    assert found[0] == found[1]


def test_an_evaluation_before_training_has_the_last_stage(tmp_path, tokenizer):
    settings = {"eval_dataset": STEPS, "per_device_eval_batch_size": 4}
    stages = make_latent_trainer(tmp_path, tokenizer, "answer", latent_curriculum=[0, 1, 2], **settings)
    last = make_latent_trainer(tmp_path, tokenizer, "answer", latent_curriculum=[2], **settings)
    assert stages.evaluate()["eval_loss"] == last.evaluate()["eval_loss"]


def test_evaluation_rows_may_have_more_thoughts_than_those_of_the_training(tmp_path, tokenizer):
    trainer = make_latent_trainer(tmp_path, tokenizer, rows=TARGETS[3:], eval_dataset=TARGETS[1:2], max_steps=1)
    found = trainer.evaluate()
    assert {f"eval_latent/kl_{number}" for number in (1, 2, 3)} <= set(found)


# What it is given


def fits_tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def train_path(tmp_path, folder, **settings):
    args = LatentSFTConfig(
        str(tmp_path / "out"),
        **STEP_BY_STEP,
        max_steps=1,
        per_device_train_batch_size=2,
        save_strategy="no",
        answer_template="={answer}",
        **{"thinking_settings": {"thinking_answer_start": "="}, **settings},
    )
    trainer = LatentSFTTrainer(folder, args, train_dataset=TARGETS)
    trainer.train()
    return trainer


def test_a_plain_checkpoint_by_its_path(tmp_path, plain_checkpoint):
    trainer = train_path(
        tmp_path,
        plain_checkpoint,
        thinking_mode="embedding",
        thinking_settings={
            "thinking_residual_r_min": 0.05,
            "thinking_residual_r_max": 0.2,
            "thinking_answer_start": "=",
        },
        model_init_kwargs={"thinking_residual_c": 4.0},
    )
    config = trainer.model.config
    assert (config.thinking_mode, config.thinking_residual_r_min, config.thinking_residual_c) == (
        "embedding",
        0.05,
        4.0,
    )
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad and "thinking" in name}
    assert trained and not any("projection" in name for name in trained)


def test_a_thinking_checkpoint_by_its_path_keeps_its_mode(tmp_path, tokenizer):
    make_thinking_model("projection").save_pretrained(tmp_path / "thinking")
    tokenizer.save_pretrained(tmp_path / "thinking")
    trainer = train_path(tmp_path, str(tmp_path / "thinking"), thinking_settings=None)
    assert trainer.thinking_mode == "projection"


def test_rows_as_a_dataset_with_structs_that_arrow_has_filled(tmp_path, tokenizer):
    from datasets import Dataset

    data = Dataset.from_list(TARGETS)
    assert None in data[0]["thought_targets"][0].values()
    trainer = make_latent_trainer(tmp_path, tokenizer, rows=data)
    expected = make_latent_trainer(tmp_path, tokenizer, rows=TARGETS)
    for found, row in zip(trainer.train_dataset, expected.train_dataset):
        assert dict(zip(map(str, found["target_ids"]), found["target_weights"])).keys() == dict(
            zip(map(str, row["target_ids"]), row["target_weights"])
        ).keys() or sorted(map(sorted, found["target_ids"])) == sorted(map(sorted, row["target_ids"]))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_saved_model_is_a_thinking_checkpoint(tmp_path, tokenizer, objective):
    trainer = make_latent_trainer(tmp_path, tokenizer, objective)
    trainer.train()
    assert all(math.isfinite(loss) for loss in losses(trainer))
    trainer.save_model(tmp_path / "saved")
    model = load_thinking_model(str(tmp_path / "saved"))
    config = model.config
    counts = {"soft_targets": (None, "sample"), "answer": (2, "placeholder"), "distill": (2, "placeholder")}
    assert (config.thinking_count, config.token_policy) == counts[objective]
    trained = weights_of(trainer)
    assert all(torch.equal(p, trained[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("mode", ["projection", "embedding", "soft", "pause", "none"])
def test_it_trains_in_each_mode(tmp_path, tokenizer, mode):
    rows = [dict(row, thought_targets=(row["thought_targets"] * 2 or [{"a": 1.0}] * 2)[:2]) for row in TARGETS]
    trainer = make_latent_trainer(tmp_path, tokenizer, rows=rows, thinking_mode=mode, max_steps=2)
    before = weights_of(trainer)
    trainer.train()
    assert all(math.isfinite(loss) for loss in losses(trainer))
    after = weights_of(trainer)
    for name, parameter in trainer.model.named_parameters():
        assert parameter.requires_grad != torch.equal(before[name], after[name]), name


def test_the_gates_have_their_own_learning_rate(tmp_path, tokenizer):
    settings = {"thinking_mode": "embedding", "lr_thinking_residual_gate": 0.0, "lr_thinking_residual_Lambda": 0.0}
    trainer = make_latent_trainer(tmp_path, tokenizer, weight_decay=0.0, **settings)
    before = weights_of(trainer)
    trainer.train()
    after = weights_of(trainer)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved and not any("thinking" in name for name in moved)


def test_it_trains_under_bf16_autocast(tmp_path, tokenizer):
    trainer = make_latent_trainer(tmp_path, tokenizer, bf16=True, thinking_mode="projection")
    trainer.train()
    assert losses(trainer)[0] > 0 and all(math.isfinite(loss) for loss in losses(trainer))


@pytest.mark.slow
@pytest.mark.parametrize("objective, mode", [("soft_targets", "projection"), ("answer", "codi"), ("distill", "codi")])
def test_an_adapter_trains_the_thinking_modules_and_goes_on_into_hrpo(tmp_path, plain_checkpoint, objective, mode):
    tokenizer = fits_tokenizer(plain_checkpoint)
    fields = {"thinking_answer_start": "=", "thinking_mode": mode}
    if mode == "codi":
        fields |= {"thinking_count": 2, "thinking_placeholder_id": 29}
    model = load_thinking_model(plain_checkpoint, **fields)
    trainer = make_latent_trainer(
        tmp_path, tokenizer, objective, model=model, thinking_mode=mode, peft_config=LoraConfig(**LORA)
    )
    assert "thinking_projection" in trainer.model.peft_config["default"].modules_to_save
    before = weights_of(trainer)
    trainer.train()
    moved = {name for name, weight in weights_of(trainer).items() if not torch.equal(weight, before[name])}
    assert any("lora_" in name for name in moved) and any("thinking_projection.modules" in name for name in moved)
    assert all("lora_" in name or "modules_to_save" in name for name in moved)
    trainer.save_model(tmp_path / "saved")
    loaded = load_thinking_model(str(tmp_path / "saved"))
    batch = batch_of(trainer)
    kwargs = {name: batch[name] for name in ("input_ids", "attention_mask", "latent_mask") if name in batch}
    if mode == "codi":
        trainer.model.eval(), loaded.eval()
        with torch.no_grad():
            torch.testing.assert_close(loaded(**kwargs).logits, trainer.model(**kwargs).logits, atol=1e-5, rtol=1e-5)
    rewards = lambda completions, **kwargs: [float(len(text) % 3) for text in completions]  # noqa: E731
    args = HRPOConfig(
        str(tmp_path / "hrpo"),
        **STEP_BY_STEP,
        per_device_train_batch_size=2,
        num_generations=2,
        max_steps=1,
        max_completion_length=6,
        beta=0.0,
        save_strategy="no",
    )
    data = [{"prompt": row["prompt"]} for row in TARGETS]
    config = type(model.config).from_pretrained(tmp_path / "saved")
    base = load_thinking_model(plain_checkpoint, config=config)
    adapted = PeftModel.from_pretrained(base, tmp_path / "saved", is_trainable=True)
    hrpo = HRPOTrainer(adapted, rewards, args, Dataset.from_list(data), processing_class=tokenizer)
    hrpo.train()
    assert math.isfinite(hrpo.state.log_history[-1]["train_loss"])


def test_an_adapter_goes_on_into_hrpo_by_its_folder(tmp_path, tokenizer, plain_checkpoint):
    trainer = make_latent_trainer(
        tmp_path, tokenizer, "distill", model=plain_checkpoint, thinking_mode="codi", peft_config=LoraConfig(**LORA)
    )
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    args = HRPOConfig(
        str(tmp_path / "hrpo"),
        **STEP_BY_STEP,
        per_device_train_batch_size=2,
        num_generations=2,
        max_steps=2,
        max_completion_length=6,
        learning_rate=1e-2,
        save_strategy="no",
    )
    rows = Dataset.from_list([{"prompt": row["prompt"]} for row in TARGETS])
    hrpo = HRPOTrainer(
        str(tmp_path / "saved"), lambda completions, **_: [float(len(text) % 3) for text in completions], args, rows
    )
    taught = {name: weight.clone() for name, weight in trainer.model.named_parameters() if "lora_" in name}
    loaded = {name: weight for name, weight in hrpo.model.named_parameters() if name in taught}
    assert taught and all(torch.equal(loaded[name], weight) for name, weight in taught.items())
    hrpo.train()
    assert any(not torch.equal(loaded[name], weight) for name, weight in taught.items())


def test_a_peft_model_of_the_users_own(tmp_path, tokenizer):
    model = get_peft_model(make_thinking_model("soft"), LoraConfig(**LORA))
    trainer = make_latent_trainer(tmp_path, tokenizer, model=model)
    trainer.train()
    assert all(math.isfinite(loss) for loss in losses(trainer))


def test_chat_prompts_are_rendered_with_the_generation_prompt(tmp_path, plain_checkpoint):
    tokenizer = fits_tokenizer(plain_checkpoint)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    )
    rows = [dict(row, prompt=[{"role": "user", "content": row["prompt"]}]) for row in TARGETS]
    trainer = make_latent_trainer(tmp_path, tokenizer, rows=rows)
    assert tokenizer.decode(trainer.train_dataset[1]["prompt_ids"]) == "Ann?:"
    trainer.train()


def test_a_tokenizer_without_a_padding_token(tmp_path, plain_checkpoint):
    tokenizer = fits_tokenizer(plain_checkpoint)
    tokenizer.pad_token = None
    make_latent_trainer(tmp_path, tokenizer, max_steps=1).train()


def test_a_plain_model_is_refused_by_its_name(tmp_path, plain_checkpoint):
    model = Qwen2ForCausalLM.from_pretrained(plain_checkpoint)
    with pytest.raises(ValueError, match="load_thinking_model"):
        make_latent_trainer(tmp_path, fits_tokenizer(plain_checkpoint), model=model)
