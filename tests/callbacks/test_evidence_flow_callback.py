"""EvidenceFlowCallback in real Trainers: what it adds, what it leaves alone, how it ends and resumes."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_families import tiny_causal_lm, token_ids
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_evidenceflow import EvidenceFlowCallback, evidence_flow


def make_data(count=32, lengths=(11, 5, 9, 3)):
    rows = []
    for index in range(count):
        ids = token_ids(1, 11, seed=index)[0]
        labels = ids.clone()
        labels[lengths[index % len(lengths)] :] = -100
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def make_trainer(tmp_path, callback=None, model=None, trainer_class=Trainer, callbacks=(), **overrides):
    settings = {
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "linear",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
    }
    return trainer_class(
        model=tiny_causal_lm("llama") if model is None else model,
        args=TrainingArguments(str(tmp_path), **(settings | overrides)),
        train_dataset=make_data(),
        eval_dataset=make_data(4),
        callbacks=[*callbacks, *([] if callback is None else [callback])],
    )


def hooks(model):
    return [name for name, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks]


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), f"{name}: {(first[name] - second[name]).abs().max():.3g}"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    trainer = make_trainer(tmp_path_factory.mktemp("plain"))
    trainer.train()
    return trainer


def test_it_trains_another_model_than_none(plain, tmp_path):
    trainer = make_trainer(tmp_path, EvidenceFlowCallback(objective="cross_entropy"))
    trainer.train()
    assert any(not torch.equal(value, weights(plain)[name]) for name, value in weights(trainer).items())


@pytest.mark.parametrize("objective", ["mse", "nitp", "cross_entropy"])
def test_weight_zero_trains_bit_identically(plain, tmp_path, objective):
    trainer = make_trainer(tmp_path, EvidenceFlowCallback(objective=objective, weight=0.0))
    trainer.train()
    assert_equal(weights(trainer), weights(plain))
    assert [row["loss"] for row in trainer.state.log_history[:4]] == [
        row["loss"] for row in plain.state.log_history[:4]
    ]


def test_a_removed_callback_trains_bit_identically(plain, tmp_path):
    callback = EvidenceFlowCallback()
    trainer = make_trainer(tmp_path, callback)
    trainer.remove_callback(callback)
    trainer.train()
    assert_equal(weights(trainer), weights(plain))


def test_after_training_the_same_model_trains_on_as_if_nothing_had_been(plain, tmp_path):
    callback = EvidenceFlowCallback()
    trainer = make_trainer(tmp_path, callback)
    trainer.train()
    assert not hooks(trainer.model)
    inputs = {"input_ids": token_ids(), "labels": token_ids()}
    reference = tiny_causal_lm("llama")
    reference.load_state_dict(trainer.model.state_dict())
    assert torch.equal(trainer.model.train()(**inputs).loss, reference.train()(**inputs).loss)


class Bomb(TrainerCallback):
    """Raises at an event."""

    def __init__(self, event, error):
        self.event, self.error = event, error

    def _raise(self, args, state, control, **kwargs):
        if state.global_step >= 1:
            raise self.error


class Explode:
    """A hook that raises."""

    def __init__(self, error):
        self.error = error

    def __call__(self, *args):
        raise self.error


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("event", ["on_pre_optimizer_step", "on_step_end", "on_log", "on_evaluate"])
def test_an_exception_between_forward_passes_leaves_no_hook(tmp_path, event, error):
    bomb = Bomb(event, error)
    setattr(bomb, event, bomb._raise)
    trainer = make_trainer(
        tmp_path, EvidenceFlowCallback(), callbacks=[bomb], eval_strategy="steps", eval_steps=1, logging_steps=1
    )
    with pytest.raises(error):
        trainer.train()
    assert not hooks(trainer.model)


def test_an_exception_in_the_forward_pass_leaves_no_hook(tmp_path):
    model = tiny_causal_lm("llama")
    handle = model.model.norm.register_forward_hook(Explode(ZeroDivisionError))
    trainer = make_trainer(tmp_path, EvidenceFlowCallback(), model=model)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    handle.remove()
    assert not hooks(trainer.model)


def test_hooks_left_by_ctrl_c_in_the_forward_pass_go_before_they_act(tmp_path):
    model, inputs = tiny_causal_lm("llama").train(), {"input_ids": token_ids(), "labels": token_ids()}
    expected = model(**inputs).loss
    handle = model.model.norm.register_forward_hook(Explode(KeyboardInterrupt))
    trainer = make_trainer(tmp_path, EvidenceFlowCallback(), model=model)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    handle.remove()
    assert torch.equal(model(**inputs).loss, expected)
    assert not hooks(model)


@pytest.mark.parametrize("event", ["on_step_begin", "on_substep_end"])
def test_on_a_trainer_of_its_own_no_hook_outlasts_ctrl_c_before_the_step(tmp_path, event):
    bomb = Bomb(event, KeyboardInterrupt)
    setattr(bomb, event, bomb._raise)
    trainer = make_trainer(tmp_path, callbacks=[bomb], gradient_accumulation_steps=2)
    EvidenceFlowCallback().add_to(trainer)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not hooks(trainer.model)


@pytest.mark.parametrize("place", ["before the model", "in the model"])
def test_on_a_trainer_of_its_own_no_hook_outlasts_ctrl_c(tmp_path, place):
    class Interrupted(Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            if place == "before the model":
                raise KeyboardInterrupt
            return super().training_step(model, inputs, num_items_in_batch)

    model = tiny_causal_lm("llama")
    if place == "in the model":
        model.model.norm.register_forward_hook(Explode(KeyboardInterrupt))
    trainer = make_trainer(tmp_path, model=model, trainer_class=Interrupted)
    before = hooks(model)
    EvidenceFlowCallback().add_to(trainer)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert hooks(model) == before


def test_adding_it_to_a_trainer_trains_as_handing_it_over(tmp_path):
    handed = make_trainer(tmp_path, EvidenceFlowCallback(), gradient_accumulation_steps=2)
    added = make_trainer(tmp_path, gradient_accumulation_steps=2)
    EvidenceFlowCallback().add_to(added)
    for trainer in (handed, added):
        trainer.train()
    assert_equal(weights(added), weights(handed))
    assert added.state.log_history[0]["evidence_flow/loss"] == handed.state.log_history[0]["evidence_flow/loss"]


def test_undoing_it_leaves_the_trainer_as_before(plain, tmp_path):
    trainer = make_trainer(tmp_path)
    before, callbacks = trainer.training_step, list(trainer.callback_handler.callbacks)
    callback = EvidenceFlowCallback().add_to(trainer)
    assert trainer.training_step != before
    callback.undo()
    callback.undo()
    assert trainer.training_step == before and "training_step" not in vars(trainer)
    assert trainer.callback_handler.callbacks == callbacks
    trainer.train()
    assert_equal(weights(trainer), weights(plain))


def test_another_wrapper_of_the_step_survives_the_undoing(tmp_path):
    trainer, calls = make_trainer(tmp_path), []
    callback = EvidenceFlowCallback().add_to(trainer)
    wrapped = trainer.training_step
    trainer.training_step = lambda *args: calls.append(1) or wrapped(*args)
    callback.undo()
    trainer.train()
    assert len(calls) == 4 and not hooks(trainer.model)
    assert not any("evidence_flow/loss" in row for row in trainer.state.log_history)


class DecoderTrainer(Trainer):
    """Computes a loss of its own from the decoder's states."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return model.model(inputs["input_ids"]).last_hidden_state.square().mean()


class EvaluatingTrainer(Trainer):
    """Takes the model's loss in evaluation mode."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return model.eval()(**inputs).loss


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("trainer_class", [DecoderTrainer, EvaluatingTrainer])
def test_a_trainer_whose_loss_gets_no_term_is_stopped_before_its_first_step(tmp_path, trainer_class, added):
    callback = EvidenceFlowCallback()
    trainer = make_trainer(tmp_path, None if added else callback, trainer_class=trainer_class)
    if added:
        callback.add_to(trainer)
    before = weights(trainer)
    with pytest.raises(RuntimeError, match=r"No layer-wise term.*own loss.*leave the layer-wise supervision out"):
        trainer.train()
    assert not hooks(trainer.model)
    assert_equal(weights(trainer), before)


def test_evaluation_during_training_is_pure_cross_entropy(tmp_path):
    losses = []
    for weight in (0.0, 1e-30):
        trainer = make_trainer(
            tmp_path, EvidenceFlowCallback(objective="zero", weight=weight), eval_strategy="steps", eval_steps=1
        )
        trainer.train()
        losses.append([row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("objective", ["mse", "nitp", "deep_supervision"])
def test_the_saved_model_has_no_extra_key(plain, tmp_path, objective):
    trainer = make_trainer(
        tmp_path / "run", EvidenceFlowCallback(objective=objective), save_strategy="steps", save_steps=2
    )
    trainer.train()
    plain.save_model(tmp_path / "plain")
    trainer.save_model(tmp_path / "supervised")
    for folder in ("supervised", "run/checkpoint-2"):
        keys = []
        for model in (folder, "plain"):
            with safe_open(tmp_path / model / "model.safetensors", "pt") as saved:
                keys.append(list(saved.keys()))
        assert keys[0] == keys[1]
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert config == json.loads((tmp_path / "plain" / "config.json").read_text())


@pytest.mark.parametrize("objective", ["mse", "cosine", "nitp"])
def test_accumulated_micro_batches_train_as_one_batch(tmp_path, objective):
    trained = []
    for size, steps in ((8, 1), (1, 8)):
        trainer = make_trainer(
            tmp_path,
            EvidenceFlowCallback(objective=objective),
            model=tiny_causal_lm("llama").double(),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            optim="sgd",
        )
        trainer.train()
        trained.append((weights(trainer), trainer.state.log_history))
    for name in trained[0][0]:
        torch.testing.assert_close(trained[1][0][name], trained[0][0][name], rtol=1e-6, atol=1e-8)
    for one, eight in zip(trained[0][1][:4], trained[1][1][:4]):
        for key in ("evidence_flow/loss", "evidence_flow/model_loss"):
            assert eight[key] == pytest.approx(one[key], rel=1e-6)


def test_the_terms_are_in_the_log_history_of_each_log(tmp_path):
    trainer = make_trainer(tmp_path, EvidenceFlowCallback(weight=0.5), logging_steps=2)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 2
    for row in rows:
        layers = [row[f"evidence_flow/layer_{layer}"] for layer in range(3)]
        assert row["evidence_flow/loss"] == pytest.approx(sum(layers))
        assert row["evidence_flow/weight"] == 0.5
    assert "evidence_flow/loss" not in trainer.state.log_history[-1]


def test_the_trained_loss_is_the_models_and_the_weighted_term(tmp_path):
    trainer = make_trainer(tmp_path, EvidenceFlowCallback(weight=0.5))
    trainer.train()
    for row in trainer.state.log_history[:4]:
        assert row["loss"] == pytest.approx(
            row["evidence_flow/model_loss"] + 0.5 * row["evidence_flow/loss"], rel=1e-5
        )


def test_log_every_records_only_some_steps(tmp_path):
    trainer = make_trainer(tmp_path, EvidenceFlowCallback(log_every=3))
    trainer.train()
    assert ["evidence_flow/loss" in row for row in trainer.state.log_history[:4]] == [True, False, False, True]


def test_reporters_get_the_terms_when_it_is_added_first(tmp_path):
    seen = []

    class Reporter(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(dict(logs))

    trainer = make_trainer(tmp_path, callbacks=[Reporter()])
    EvidenceFlowCallback().add_to(trainer)
    trainer.train()
    assert "evidence_flow/layer_2" in seen[0]


@pytest.mark.parametrize("objective", ["mse", "shuffled", "cross_entropy", "nitp", "deep_supervision"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, objective):
    settings = {"save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}

    def make():
        callback = EvidenceFlowCallback(
            objective=objective, weight_warmup_steps=2, weight_schedule="cosine", token_fraction=0.5
        )
        return make_trainer(tmp_path, callback, **settings)

    whole = make()
    whole.train()
    shutil.rmtree(tmp_path / "checkpoint-4")
    resumed = make()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_equal(weights(resumed), weights(whole))
    assert resumed.state.log_history[-2]["evidence_flow/loss"] == whole.state.log_history[-2]["evidence_flow/loss"]


def test_a_log_row_holds_also_what_came_before_the_checkpoint(tmp_path):
    def make():
        return make_trainer(tmp_path, EvidenceFlowCallback(), save_strategy="steps", save_steps=2, logging_steps=3)

    whole = make()
    whole.train()
    resumed = make()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    logged, expected = (
        {name: value for name, value in trainer.state.log_history[0].items() if name.startswith("evidence_flow/")}
        for trainer in (resumed, whole)
    )
    assert len(logged) == 6 and logged == expected


def test_own_parameters_train_and_are_saved_beside_the_model(tmp_path):
    callback = EvidenceFlowCallback(objective="nitp")
    trainer = make_trainer(tmp_path, callback, save_strategy="steps", save_steps=2)
    trainer.train()
    first, last = (load_file(tmp_path / f"checkpoint-{step}" / "evidence_flow.safetensors") for step in (2, 4))
    assert not torch.equal(first["value:projection.weight"], last["value:projection.weight"])
    assert "exp_avg:projection.weight" in first


def test_a_checkpoint_with_own_parameters_resumes_without_the_callback(tmp_path):
    make_trainer(tmp_path, EvidenceFlowCallback(objective="nitp"), save_strategy="steps", save_steps=2).train()
    optimizer = torch.load(tmp_path / "checkpoint-2" / "optimizer.pt", weights_only=True)
    trainer = make_trainer(tmp_path)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert trainer.state.global_step == 4
    assert len(optimizer["state"]) == len(list(trainer.model.parameters()))


def test_after_training_the_optimizer_is_the_models_alone(tmp_path):
    trainer = make_trainer(tmp_path, EvidenceFlowCallback(objective="deep_supervision"))
    trainer.train()
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == len(
        list(trainer.model.parameters())
    )


def test_a_missing_side_file_is_an_error_and_another_folder_can_be_named(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2}
    make_trainer(tmp_path, EvidenceFlowCallback(objective="nitp"), **settings).train()
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "checkpoint-2" / "evidence_flow.safetensors", tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"checkpoint-2/evidence_flow.safetensors.*resume_from=folder"):
        make_trainer(tmp_path, EvidenceFlowCallback(objective="nitp")).train(str(tmp_path / "checkpoint-2"))
    callback = EvidenceFlowCallback(objective="nitp", resume_from=str(tmp_path / "elsewhere"))
    make_trainer(tmp_path, callback).train(str(tmp_path / "checkpoint-2"))
    wrong = EvidenceFlowCallback(objective="deep_supervision", resume_from=str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match="Resume with the same settings"):
        make_trainer(tmp_path, wrong).train(str(tmp_path / "checkpoint-2"))


def test_data_parallel_threads_are_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.args._n_gpu = 2
    with pytest.raises(ValueError, match=r"2 GPUs in threads.*`torchrun`"):
        EvidenceFlowCallback().on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model)


def test_label_smoothing_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"`label_smoothing_factor=0.1`.*its own loss"):
        make_trainer(tmp_path, EvidenceFlowCallback(), label_smoothing_factor=0.1).train()


def test_a_loss_function_of_the_trainers_is_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: outputs.logits.mean()
    with pytest.raises(ValueError, match="`compute_loss_func`"):
        EvidenceFlowCallback().add_to(trainer)
    trainer.add_callback(EvidenceFlowCallback())
    with pytest.raises(ValueError, match=r"got no `labels`.*`compute_loss_func`"):
        trainer.train()
    assert not hooks(trainer.model)


def test_a_family_that_cannot_be_read_is_an_error_before_the_first_step(tmp_path):
    model = tiny_causal_lm("llama")
    model._no_split_modules = None
    model.config.num_hidden_layers = 4
    with pytest.raises(ValueError, match=r"could not be found.*`layer_modules`"):
        make_trainer(tmp_path, EvidenceFlowCallback(), model=model).train()


def test_a_compiled_trainer_gives_the_same(tmp_path):
    losses = []
    for compiled in (False, True):
        torch._dynamo.reset()
        trainer = make_trainer(
            tmp_path, EvidenceFlowCallback(objective="cosine"), torch_compile=compiled, torch_compile_backend="eager"
        )
        trainer.train()
        losses.append([row["loss"] for row in trainer.state.log_history[:4]])
    torch._dynamo.reset()
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.slow
class TestWithTRL:
    @staticmethod
    def make_sft_trainer(tmp_path, tokenizer, callback, **overrides):
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        rows = [{"prompt": "abc ", "completion": "def"[: 1 + index % 3]} for index in range(8)]
        settings = {"max_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 2, "max_length": 16}
        settings |= {"use_cpu": True, "bf16": False, "report_to": [], "disable_tqdm": True, "save_strategy": "no"}
        return SFTTrainer(
            tiny_causal_lm("llama"),
            SFTConfig(str(tmp_path), **(settings | overrides)),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[callback],
        )

    def test_sft_trains_as_a_trainer_on_the_same_batches(self, tmp_path, tokenizer):
        settings = {"optim": "sgd", "learning_rate": 0.1, "gradient_accumulation_steps": 2, "max_grad_norm": 0.0}
        sft = self.make_sft_trainer(tmp_path, tokenizer, EvidenceFlowCallback(), **settings)
        batches = [dict(batch) for batch in sft.get_train_dataloader()]
        sft.train()
        model = tiny_causal_lm("llama").train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step, rate in enumerate((0.1, 0.05)):
            pair = batches[2 * step : 2 * step + 2]
            total = sum((batch["labels"][:, 1:] != -100).sum() for batch in pair)
            with evidence_flow(model):
                for batch in pair:
                    model(**batch, num_items_in_batch=total).loss.backward()
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        for name, value in sft.model.state_dict().items():
            torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-5, atol=1e-6)

    def test_a_loss_that_weighs_tokens_is_refused(self, tmp_path, tokenizer):
        with pytest.raises(ValueError, match="`loss_type='dft'` weighs tokens"):
            self.make_sft_trainer(tmp_path, tokenizer, EvidenceFlowCallback(), loss_type="dft").train()

    def test_sft_is_supervised_on_completions(self, tmp_path, tokenizer):
        for packing in (False, True):
            trainer = self.make_sft_trainer(tmp_path, tokenizer, EvidenceFlowCallback(weight=0.5), packing=packing)
            trainer.train()
            assert hooks(trainer.model) in ([], ["model.embed_tokens"])  # TRL's, for gradient checkpointing
            row = trainer.state.log_history[0]
            total = row["evidence_flow/model_loss"] + 0.5 * row["evidence_flow/loss"]
            assert row["loss"] == pytest.approx(total, rel=1e-5)
            assert row["evidence_flow/loss"] > 0.01

    @pytest.mark.parametrize("name", ["GRPO", "HRPO"])
    def test_reinforcement_learning_is_refused_with_the_reason(self, tmp_path, tokenizer, plain_checkpoint, name):
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        from hf_evidenceflow import HRPOConfig, HRPOTrainer

        trainer_class, config_class = {"GRPO": (GRPOTrainer, GRPOConfig), "HRPO": (HRPOTrainer, HRPOConfig)}[name]
        config = config_class(
            str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=2,
            num_generations=2,
            max_completion_length=4,
            use_cpu=True,
            bf16=False,
            report_to=[],
            beta=0.0,
        )
        trainer = trainer_class(
            plain_checkpoint,
            lambda completions, **kwargs: [0.0 for _ in completions],
            args=config,
            train_dataset=Dataset.from_list([{"prompt": "abc"}] * 4),
            processing_class=tokenizer,
            callbacks=[EvidenceFlowCallback()],
        )
        with pytest.raises(ValueError, match=rf"{name}Config computes its own loss from log-probabilities"):
            trainer.train()
        assert hooks(trainer.model) in ([], ["model.embed_tokens"])  # TRL's, for gradient checkpointing
