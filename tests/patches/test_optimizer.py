"""Learning rates by name for a Trainer that somebody else made."""

import inspect
import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_trainer import GroupedTrainer, Plain, make_model, make_trainer
from transformers import Trainer

from hf_evidenceflow.callbacks.parameter_group_watch import ParameterGroupWatch
from hf_evidenceflow.patches import patch_parameter_group_lrs, patch_trainer_optimizer
from hf_evidenceflow.trainers.parameter_groups import ParameterGroupSpec


RATES = {"thinking_residual_gate": 0.03, "thinking_projection": 0.002}


@pytest.fixture
def trainer(tmp_path):
    return make_trainer(tmp_path)


def rates_of(trainer):
    """Parameter name -> learning rate, each parameter once."""
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    pairs = [(names[id(p)], group["lr"]) for group in trainer.optimizer.param_groups for p in group["params"]]
    assert len(dict(pairs)) == len(pairs) == len(names)
    return dict(pairs)


def expected_rates(trainer, rates, base=0.01):
    return {
        name: next((rate for pattern, rate in rates.items() if pattern in name), base)
        for name, _ in trainer.model.named_parameters()
    }


def weights_after(trainer):
    trainer.train()
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_same(first, second):
    gap = max((first[name] - second[name]).abs().max().item() for name in first)
    assert gap == 0, f"largest absolute difference {gap}"


def fingerprint(trainer):
    """All that a patch may touch."""
    return dict(vars(trainer)), list(trainer.callback_handler.callbacks), dict(vars(trainer.callback_handler))


# Effect


def test_each_group_trains_at_its_own_rate(trainer):
    patch_parameter_group_lrs(trainer, RATES)
    trainer.train()
    assert rates_of(trainer) == expected_rates(trainer, RATES)


def test_the_first_step_of_adam_is_as_long_as_the_groups_rate(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1, weight_decay=0.0)
    gate, head = trainer.model.model.thinking_residual_gate_r.weight, trainer.model.head.weight
    before = gate.detach().clone(), head.detach().clone()
    with patch_parameter_group_lrs(trainer, {"gate_r": 0.03}):
        trainer.train()
    # Adam's first step is lr * g / (|g| + eps): the rate itself, wherever the gradient is well above eps = 1e-8
    moved = [(after - b).abs().max().item() for after, b in zip((gate, head), before)]
    assert moved == pytest.approx([0.03, 0.01], rel=1e-3)


def test_the_scheduler_scales_every_group(tmp_path):
    trainer = make_trainer(tmp_path, lr_scheduler_type="linear", max_steps=8)
    patch_parameter_group_lrs(trainer, RATES)
    trainer.create_optimizer_and_scheduler(8)
    trainer.optimizer.step()
    trainer.lr_scheduler.step()
    expected = {name: rate * 7 / 8 for name, rate in expected_rates(trainer, RATES).items()}
    assert rates_of(trainer) == pytest.approx(expected, rel=1e-12)


def test_the_split_by_weight_decay_survives(trainer):
    patch_parameter_group_lrs(trainer, RATES)
    trainer.create_optimizer()
    decays = {group["name"]: [] for group in trainer.optimizer.param_groups if "name" in group}
    for group in trainer.optimizer.param_groups:
        if "name" in group:
            decays[group["name"]].append(group["weight_decay"])
    assert decays == {"thinking_residual_gate": [0.1, 0.0], "thinking_projection": [0.1]}


def test_a_group_can_have_a_weight_decay_of_its_own(trainer):
    patch_parameter_group_lrs(trainer, {"_gate_": {"lr": 0.03, "weight_decay": 0.02}})
    trainer.create_optimizer()
    decays = {group["weight_decay"] for group in trainer.optimizer.param_groups if group.get("name") == "_gate_"}
    assert decays == {0.02}


def test_a_group_that_does_not_train_stops_the_run(trainer):
    trainer.model.model.connected = False
    patch_parameter_group_lrs(trainer, RATES)
    with pytest.raises(RuntimeError, match="'thinking_projection'"):
        trainer.train()


@pytest.mark.parametrize("rates", [{}, {"thinking_projection": None}], ids=["no-pattern", "rate-none"])
def test_a_neutral_patch_is_no_patch(tmp_path, rates):
    plain, patched = make_trainer(tmp_path), make_trainer(tmp_path)
    patch_parameter_group_lrs(patched, rates)
    assert_same(weights_after(plain), weights_after(patched))


def test_a_second_train_keeps_the_groups(trainer):
    patch_parameter_group_lrs(trainer, RATES)
    trainer.train()
    trainer.train()
    assert rates_of(trainer) == expected_rates(trainer, RATES)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    args = {"max_steps": 4, "lr_scheduler_type": "linear", "save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(tmp_path / "whole", **args)
    patch_parameter_group_lrs(whole, RATES)
    expected = weights_after(whole)
    resumed = make_trainer(tmp_path / "resumed", make_model(seed=1), **args)
    patch_parameter_group_lrs(resumed, RATES)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_same(expected, resumed.model.state_dict())


def test_resuming_without_the_patch_is_an_error(tmp_path):
    patched = make_trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    patch_parameter_group_lrs(patched, RATES)
    patched.train()
    with pytest.raises(ValueError, match="parameter group"):
        make_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_an_override_in_the_old_style_works(tmp_path):
    class OldTrainer(Trainer):
        def create_optimizer(self):
            return super().create_optimizer()

    trainer = make_trainer(tmp_path, trainer_class=OldTrainer)
    patch_parameter_group_lrs(trainer, RATES)
    trainer.train()
    assert rates_of(trainer) == expected_rates(trainer, RATES)


@pytest.mark.slow
def test_a_trl_trainer_works(tmp_path, plain_checkpoint, tokenizer):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(str(tmp_path), max_steps=2, use_cpu=True, report_to=[], lr_scheduler_type="constant", bf16=False)
    data = Dataset.from_dict({"text": ["one plus two", "two plus three", "six"]})
    trainer = SFTTrainer(plain_checkpoint, args=args, train_dataset=data, processing_class=tokenizer)
    rates = {"layers.1.": 0.002}
    patch_parameter_group_lrs(trainer, rates)
    trainer.train()
    assert rates_of(trainer) == expected_rates(trainer, rates, base=args.learning_rate)


# Undo


def test_after_undo_the_trainer_is_as_before(trainer):
    before = fingerprint(trainer)
    handle = patch_parameter_group_lrs(trainer, RATES)
    trainer.create_optimizer_and_scheduler(7)
    handle.undo()
    assert fingerprint(trainer) == (before[0] | {"_created_lr_scheduler": True}, *before[1:])


def test_a_run_after_undo_equals_one_without_the_patch(tmp_path):
    plain, patched = make_trainer(tmp_path), make_trainer(tmp_path)
    with patch_parameter_group_lrs(patched, RATES):
        patched.create_optimizer()
    assert_same(weights_after(plain), weights_after(patched))


def test_undo_twice_is_safe(trainer):
    handle = patch_parameter_group_lrs(trainer, RATES)
    handle.undo()
    handle.undo()
    assert "create_optimizer" not in vars(trainer)


def test_with_undoes_after_an_exception(trainer):
    trainer.model.model.connected = False
    with pytest.raises(RuntimeError), patch_parameter_group_lrs(trainer, RATES):
        trainer.train()
    assert "create_optimizer" not in vars(trainer)
    assert trainer.optimizer is None


def test_an_optimizer_that_has_stepped_stays(trainer):
    with patch_parameter_group_lrs(trainer, RATES):
        trainer.train()
    assert rates_of(trainer) == expected_rates(trainer, RATES)


@pytest.mark.parametrize("first", [0, 1], ids=["in-order", "in-reverse"])
def test_two_patches_can_be_undone_in_any_order(trainer, first):
    before = fingerprint(trainer)
    rates = [{"thinking_residual_gate": 0.03}, {"thinking_projection": 0.002}]
    handles = [patch_parameter_group_lrs(trainer, each) for each in rates]
    handles[first].undo()
    trainer.create_optimizer()
    assert rates_of(trainer) == expected_rates(trainer, rates[1 - first])
    handles[1 - first].undo()
    assert fingerprint(trainer) == before


def test_undoing_one_patch_regroups_an_optimizer_that_has_not_stepped(trainer):
    handle = patch_parameter_group_lrs(trainer, {"thinking_residual_gate": 0.03})
    patch_parameter_group_lrs(trainer, {"thinking_projection": 0.002})
    trainer.create_optimizer()
    handle.undo()
    trainer.train()
    assert rates_of(trainer) == expected_rates(trainer, {"thinking_projection": 0.002})


def test_the_instance_patch_of_another_tool_comes_back(trainer):
    def other(model=None):
        return Trainer.create_optimizer(trainer, model)

    trainer.create_optimizer = other
    with patch_parameter_group_lrs(trainer, RATES):
        assert trainer.create_optimizer is not other
    assert trainer.create_optimizer is other


def test_undo_below_the_patch_of_another_tool_passes_through(trainer):
    handle = patch_parameter_group_lrs(trainer, RATES)
    inner = trainer.create_optimizer
    trainer.create_optimizer = outer = lambda model=None: inner(model)
    handle.undo()
    trainer.train()
    assert trainer.create_optimizer is outer
    assert rates_of(trainer) == expected_rates(trainer, {})


def test_undo_keeps_an_optimizer_that_the_patch_did_not_make(trainer):
    optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.01)
    with patch_parameter_group_lrs(trainer, RATES):
        trainer.optimizer = optimizer
    assert trainer.optimizer is optimizer


def test_the_watch_of_the_trainer_is_not_doubled(tmp_path):
    watch = ParameterGroupWatch()
    trainer = make_trainer(tmp_path, callbacks=[watch])
    with patch_parameter_group_lrs(trainer, RATES):
        assert [cb for cb in trainer.callback_handler.callbacks if isinstance(cb, ParameterGroupWatch)] == [watch]
    assert watch in trainer.callback_handler.callbacks


# Errors


def test_the_same_pattern_twice_is_an_error(trainer):
    patch_parameter_group_lrs(trainer, RATES)
    with pytest.raises(ValueError, match="'thinking_projection' and 'thinking_projection' both match"):
        patch_parameter_group_lrs(trainer, {"thinking_projection": 0.1})


@pytest.mark.parametrize("rates", [{"no such name": 0.1}, {"gate": 0.1, "gate_r": 0.2}, {"gate": -1.0}])
def test_a_refused_patch_leaves_the_trainer_alone(trainer, rates):
    before = fingerprint(trainer)
    with pytest.raises(ValueError):
        patch_parameter_group_lrs(trainer, rates)
    assert fingerprint(trainer) == before


def test_an_unknown_key_names_the_nearest(trainer):
    with pytest.raises(ValueError, match="unknown key 'weight_deacy'; did you mean 'weight_decay'"):
        patch_parameter_group_lrs(trainer, {"gate": {"lr": 0.1, "weight_deacy": 0.0}})


def test_a_group_without_a_rate_is_an_error(trainer):
    with pytest.raises(ValueError, match="'gate' has no key 'lr'"):
        patch_parameter_group_lrs(trainer, {"gate": {"weight_decay": 0.0}})


def test_a_trainer_with_an_optimizer_is_refused(trainer):
    trainer.create_optimizer()
    with pytest.raises(RuntimeError, match=r"has its optimizer already \(AdamW\).*Patch before `train\(\)`"):
        patch_parameter_group_lrs(trainer, RATES)


def test_an_optimizer_set_behind_the_patch_is_refused(trainer):
    patch_parameter_group_lrs(trainer, RATES)
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.01)
    with pytest.raises(RuntimeError, match=r"\(SGD\) was not made by `create_optimizer`.*thinking_residual_gate"):
        trainer.train()


def test_a_parameter_that_the_trainer_groups_itself_is_refused(tmp_path):
    specs = [ParameterGroupSpec("gate_r", 0.1)]
    trainer = make_trainer(tmp_path, trainer_class=GroupedTrainer, specs=specs)
    patch_parameter_group_lrs(trainer, RATES)
    with pytest.raises(ValueError, match=r"'gate_r' and 'thinking_residual_gate' .* the trainer itself"):
        trainer.train()


# The thinking model's rates


THINKING_RATES = {"thinking_residual_gate": 1e-4, "thinking_residual_Lambda": 1e-3, "thinking_projection": 1e-4}


@pytest.mark.parametrize(
    ("mode", "parts"),
    [("projection", list(THINKING_RATES)), ("embedding", list(THINKING_RATES)[:2]), ("none", [])],
)
def test_a_thinking_mode_gets_the_rates_of_what_it_uses(tmp_path, mode, parts):
    trainer = make_trainer(tmp_path, make_model(thinking_mode=mode))
    patch_trainer_optimizer(trainer)
    trainer.create_optimizer()
    assert rates_of(trainer) == expected_rates(trainer, {part: THINKING_RATES[part] for part in parts})


def test_the_mode_none_is_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        patch_trainer_optimizer(make_trainer(tmp_path, make_model(thinking_mode="none")))
    assert "`thinking_mode` is 'none'" in caplog.text


def test_lambda_has_no_weight_decay_unless_asked(tmp_path):
    trainer = make_trainer(tmp_path, make_model(thinking_mode="projection"))
    patch_trainer_optimizer(trainer)
    trainer.create_optimizer()
    decays = [g["weight_decay"] for g in trainer.optimizer.param_groups if g.get("name") == "thinking_residual_Lambda"]
    assert decays == [0.0]


def test_the_thinking_modules_in_an_adapter_are_found(tmp_path):
    modules = [
        "thinking_residual_gate_r",
        "thinking_residual_gate_i",
        "thinking_residual_Lambda",
        "thinking_projection",
    ]
    config = LoraConfig(r=2, target_modules=["embed"], modules_to_save=modules)
    model = get_peft_model(make_model(thinking_mode="projection"), config)
    trainer = make_trainer(tmp_path, model)
    patch_trainer_optimizer(trainer)
    trainer.create_optimizer()
    sizes = dict.fromkeys(THINKING_RATES, 0)
    for group in trainer.optimizer.param_groups:
        if "name" in group:
            sizes[group["name"]] += len(group["params"])
    assert sizes == {"thinking_residual_gate": 4, "thinking_residual_Lambda": 1, "thinking_projection": 1}


def test_a_model_that_does_not_think_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'thinking_residual_gate' matches none"):
        patch_trainer_optimizer(make_trainer(tmp_path, make_model(Plain)))


# Window of versions


def test_upstream_create_optimizer_still_has_the_signature_that_is_wrapped():
    assert str(inspect.signature(Trainer.create_optimizer)).split(" ->")[0] == "(self, model=None)"
