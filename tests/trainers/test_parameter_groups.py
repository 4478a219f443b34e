"""Regrouping an optimizer by parameter name, and the watch that stops a run in which a group does not train."""

import itertools
import logging

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper
from tiny_trainer import GroupedTrainer, make_model, make_trainer
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from hf_evidenceflow.callbacks import parameter_group_watch
from hf_evidenceflow.callbacks.parameter_group_watch import ParameterGroupWatch, parameter_group_table
from hf_evidenceflow.trainers.parameter_groups import (
    ParameterGroupSpec,
    apply_parameter_groups,
    match_parameter_groups,
)


GATE = ParameterGroupSpec("thinking_residual_gate", 0.3)
LAMBDA = ParameterGroupSpec("thinking_residual_Lambda", 1e-3)
PROJECTION = ParameterGroupSpec("thinking_projection", 0.07)


@pytest.fixture
def model():
    return make_model()


def make_optimizer(model, optimizer_class=torch.optim.AdamW, named=False, **options):
    """Two groups as Trainer makes them: weights with decay 0.1, biases without."""
    groups = [{"params": [], "weight_decay": 0.1}, {"params": [], "weight_decay": 0.0}]
    for name, parameter in model.named_parameters():
        groups["bias" in name]["params"].append((name, parameter) if named else parameter)
    return optimizer_class(groups, lr=0.01, **options)


def group_of(optimizer, parameter):
    (group,) = [group for group in optimizer.param_groups if any(parameter is p for p in group["params"])]
    return group


def snapshot(optimizer):
    return [(group.get("name"), group["lr"], list(map(id, group["params"]))) for group in optimizer.param_groups]


# Specs


@pytest.mark.parametrize("lr", [-1e-4, float("nan"), float("inf"), "1e-4", True])
def test_spec_refuses_a_rate_that_is_no_rate(lr):
    with pytest.raises(ValueError, match=r"`lr` of the parameter group 'gate' .* got"):
        ParameterGroupSpec("gate", lr)


def test_spec_refuses_a_negative_weight_decay():
    with pytest.raises(ValueError, match=r"`weight_decay` .* got -0\.1"):
        ParameterGroupSpec("gate", 1e-4, weight_decay=-0.1)


def test_spec_refuses_a_broken_regular_expression():
    with pytest.raises(ValueError, match=r"regular expression, got 'gate\('"):
        ParameterGroupSpec("gate(", 1e-4)


# Grouping


def test_matched_parameters_get_their_rate_and_no_others(model):
    optimizer = make_optimizer(model)
    apply_parameter_groups(optimizer, model.named_parameters(), [GATE, PROJECTION])
    rates = {name: group_of(optimizer, parameter)["lr"] for name, parameter in model.named_parameters()}
    assert rates == {name: 0.3 if "_gate_" in name else 0.07 if "_projection" in name else 0.01 for name in rates}


def test_the_split_by_weight_decay_survives(model):
    optimizer = make_optimizer(model)
    apply_parameter_groups(optimizer, model.named_parameters(), [GATE])
    gate = model.model.thinking_residual_gate_r
    assert group_of(optimizer, gate.weight)["weight_decay"] == 0.1
    assert group_of(optimizer, gate.bias)["weight_decay"] == 0.0


def test_a_weight_decay_of_its_own_holds_for_the_whole_group(model):
    optimizer = make_optimizer(model)
    apply_parameter_groups(optimizer, model.named_parameters(), [ParameterGroupSpec("_gate_", 0.3, weight_decay=0.02)])
    decays = {group["weight_decay"] for group in optimizer.param_groups if group.get("name") == "_gate_"}
    assert decays == {0.02}


def test_other_options_follow_the_parameters(model):
    optimizer = make_optimizer(model, betas=(0.8, 0.95))
    apply_parameter_groups(optimizer, model.named_parameters(), [GATE])
    assert group_of(optimizer, model.model.thinking_residual_gate_i.weight)["betas"] == (0.8, 0.95)


def test_the_first_group_stays_the_base_even_when_it_is_emptied(model):
    optimizer = make_optimizer(model)
    apply_parameter_groups(optimizer, model.named_parameters(), [ParameterGroupSpec(".", 0.3)])
    assert optimizer.param_groups[0]["lr"] == 0.01


def test_other_groups_go_when_they_are_empty(model):
    optimizer = make_optimizer(model)
    optimizer.add_param_group({"params": [], "weight_decay": 0.3})
    apply_parameter_groups(optimizer, model.named_parameters(), [ParameterGroupSpec("bias", 0.3)])
    assert [(group.get("name"), bool(group["params"])) for group in optimizer.param_groups] == [
        (None, True),
        ("bias", True),
    ]


def test_names_given_to_torch_stay_with_their_parameters(model):
    optimizer = make_optimizer(model, named=True)
    apply_parameter_groups(optimizer, model.named_parameters(), [GATE])
    parameters = dict(model.named_parameters())
    for group in optimizer.param_groups:
        assert all(parameters[name] is p for name, p in zip(group["param_names"], group["params"], strict=True))


def test_rates_of_none_change_nothing(model):
    optimizer = make_optimizer(model)
    before = snapshot(optimizer)
    apply_parameter_groups(optimizer, model.named_parameters(), [ParameterGroupSpec("no such name", None)])
    assert snapshot(optimizer) == before


def test_a_pattern_that_matches_nothing_names_near_parameters(model):
    with pytest.raises(
        ValueError, match=r"'thinking_projektion' matches none .* `model\.thinking_projection\.weight`"
    ):
        match_parameter_groups(model.named_parameters(), [ParameterGroupSpec("thinking_projektion", 0.3)])


def test_a_pattern_that_matches_only_frozen_parameters_says_so(model):
    model.model.thinking_projection.requires_grad_(False)
    with pytest.raises(ValueError, match=r"1 frozen ones, such as `model\.thinking_projection\.weight`"):
        match_parameter_groups(model.named_parameters(), [PROJECTION])


def test_two_patterns_on_one_parameter_are_named(model):
    specs = [GATE, ParameterGroupSpec("gate_i", 0.2)]
    with pytest.raises(ValueError, match=r"thinking_residual_gate_i\.\w+` .* 'thinking_residual_gate' and 'gate_i'"):
        match_parameter_groups(model.named_parameters(), specs)


def test_a_parameter_that_was_moved_before_is_not_moved_again(model):
    optimizer = make_optimizer(model)
    apply_parameter_groups(optimizer, model.named_parameters(), [GATE])
    with pytest.raises(ValueError, match=r"'thinking_residual_gate' and 'gate_i' .* applied already"):
        apply_parameter_groups(optimizer, model.named_parameters(), [ParameterGroupSpec("gate_i", 0.2)])


def test_a_failed_call_leaves_the_optimizer_alone(model):
    optimizer = make_optimizer(model)
    before = snapshot(optimizer)
    with pytest.raises(ValueError):
        apply_parameter_groups(optimizer, model.named_parameters(), [GATE, ParameterGroupSpec("no such name", 0.2)])
    assert snapshot(optimizer) == before


def test_a_parameter_outside_the_optimizer_is_an_error(model):
    optimizer = make_optimizer(model)
    optimizer.param_groups[0]["params"].pop(0)
    with pytest.raises(RuntimeError, match=r"exactly one group .* `model\.embed\.weight` in 0"):
        apply_parameter_groups(optimizer, model.named_parameters(), [GATE])


def test_a_parameter_in_two_groups_is_an_error(model):
    optimizer = make_optimizer(model)
    optimizer.param_groups[1]["params"].append(model.head.weight)
    with pytest.raises(RuntimeError, match=r"exactly one group .* `head\.weight` in 2"):
        apply_parameter_groups(optimizer, model.named_parameters(), [GATE])


def test_an_optimizer_with_a_state_is_refused(model):
    optimizer = make_optimizer(model)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    optimizer.step()
    with pytest.raises(RuntimeError, match="AdamW has taken steps"):
        apply_parameter_groups(optimizer, model.named_parameters(), [GATE])


def test_adagrad_is_accepted_though_it_has_state_from_the_start(model):
    optimizer = make_optimizer(model, torch.optim.Adagrad)
    apply_parameter_groups(optimizer, model.named_parameters(), [GATE])
    assert group_of(optimizer, model.model.thinking_residual_gate_r.weight)["lr"] == 0.3


def test_an_optimizer_with_a_scheduler_is_refused(model):
    optimizer = make_optimizer(model)
    LambdaLR(optimizer, lambda step: 1.0)
    with pytest.raises(RuntimeError, match="between `create_optimizer` and `create_scheduler`"):
        apply_parameter_groups(optimizer, model.named_parameters(), [GATE])


def test_a_layer_wise_dummy_is_refused(model):
    with pytest.raises(RuntimeError, match="LayerWiseDummyOptimizer updates each parameter inside the backward pass"):
        apply_parameter_groups(LayerWiseDummyOptimizer(lr=0.01), model.named_parameters(), [GATE])


def test_the_names_survive_accelerate(model):
    optimizer = make_optimizer(model)
    apply_parameter_groups(optimizer, model.named_parameters(), [GATE])
    prepared = Accelerator(cpu=True).prepare(optimizer)
    assert group_of(prepared, model.model.thinking_residual_gate_r.weight)["name"] == GATE.pattern


def test_the_state_of_the_same_groups_loads(model):
    saved = make_optimizer(model)
    apply_parameter_groups(saved, model.named_parameters(), [GATE])
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    saved.step()
    optimizer = make_optimizer(model)
    apply_parameter_groups(optimizer, model.named_parameters(), [GATE])
    optimizer.load_state_dict(saved.state_dict())
    gate = model.model.thinking_residual_gate_i.weight
    assert torch.equal(optimizer.state[gate]["exp_avg"], saved.state[gate]["exp_avg"])


def test_the_state_of_other_groups_is_refused_by_name(model):
    optimizers = [make_optimizer(model), make_optimizer(model)]
    # As many groups of the same sizes: torch itself would load one into the other
    for optimizer, part in zip(optimizers, ("gate_r", "gate_i")):
        apply_parameter_groups(optimizer, model.named_parameters(), [ParameterGroupSpec(part, 0.3)])
    with pytest.raises(ValueError, match=r"'gate_r', 'gate_r'\], this optimizer has .*'gate_i', 'gate_i'"):
        optimizers[1].load_state_dict(optimizers[0].state_dict())


def test_the_scheduler_scales_each_rate(model):
    optimizer = make_optimizer(model)
    apply_parameter_groups(optimizer, model.named_parameters(), [PROJECTION])
    LambdaLR(optimizer, lambda step: 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.005, 0.005, 0.035]


def test_the_table_shows_each_group(model):
    optimizer = make_optimizer(model)
    apply_parameter_groups(optimizer, model.named_parameters(), [GATE])
    assert [line.split() for line in parameter_group_table(optimizer).splitlines()[1:]] == [
        ["base", "4", "55", "0.01", "0.1"],
        ["base", "2", "7", "0.01", "0"],
        ["thinking_residual_gate", "2", "50", "0.3", "0.1"],
        ["thinking_residual_gate", "2", "10", "0.3", "0"],
    ]


def test_the_table_shows_the_peak_while_a_scheduler_warms_up(model):
    optimizer = make_optimizer(model)
    LambdaLR(optimizer, lambda step: 0.0)
    assert parameter_group_table(optimizer).splitlines()[1].split()[3] == "0.01"


# The watch, in real runs


class BeforeStep(TrainerCallback):
    """Calls a function with the number of the step and the model before each step's forward pass."""

    def __init__(self, function):
        self.function = function

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.function(state.global_step + 1, model)


def watched(tmp_path, specs, watch=None, model=None, callbacks=(), **args):
    watch = ParameterGroupWatch() if watch is None else watch
    return make_trainer(tmp_path, model, GroupedTrainer, callbacks=[watch, *callbacks], specs=specs, **args)


def test_healthy_groups_are_left_alone(tmp_path):
    trainer = watched(tmp_path, [GATE, LAMBDA, PROJECTION])
    trainer.train()
    assert trainer.state.global_step == 7


def test_the_table_is_printed_when_training_begins(tmp_path, capsys):
    watched(tmp_path, [GATE], max_steps=1).train()
    assert "thinking_residual_gate        2          50            0.3           0.1" in capsys.readouterr().out


def test_a_group_that_the_loss_does_not_reach_stops_the_first_step(tmp_path):
    trainer = watched(tmp_path, [GATE, PROJECTION])
    trainer.model.model.connected = False
    with pytest.raises(RuntimeError, match=r"\(model\.thinking_projection\.weight\) .* no gradient at step 1"):
        trainer.train()


def test_a_group_frozen_after_the_optimizer_was_made_stops_the_run(tmp_path):
    trainer = watched(tmp_path, [GATE, PROJECTION])
    trainer.create_optimizer()
    trainer.model.model.thinking_projection.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"'thinking_projection' .* no gradient at step 1"):
        trainer.train()


def bf16_lambda():
    """At rate 1e-3 a bf16 value between 3 and 5 does not move: its neighbours are 1/64 to 1/32 away."""
    model = make_model()
    model.model.thinking_residual_Lambda.to(torch.bfloat16)
    return model


def test_a_bf16_group_that_is_rounded_back_stops_the_run_after_five_steps(tmp_path):
    trainer = watched(tmp_path, [LAMBDA], model=bf16_lambda(), adam_beta2=0.99)
    with pytest.raises(RuntimeError, match=r"'thinking_residual_Lambda' .*0\.001 in torch\.bfloat16.*float32"):
        trainer.train()
    assert trainer.state.global_step == 4  # the fifth step is not counted yet


def test_a_bf16_group_that_moves_is_left_alone(tmp_path):
    trainer = watched(tmp_path, [ParameterGroupSpec(LAMBDA.pattern, 0.1)], model=bf16_lambda())
    trainer.train()
    assert trainer.state.global_step == 7


def test_a_step_at_rate_zero_does_not_count(tmp_path):
    trainer = watched(tmp_path, [LAMBDA], model=bf16_lambda(), lr_scheduler_type="linear", warmup_steps=2)
    with pytest.raises(RuntimeError, match="thinking_residual_Lambda"):
        trainer.train()
    assert trainer.state.global_step == 5  # one later than without warm-up


def test_a_step_without_any_gradient_does_not_count(tmp_path):
    trainer = watched(tmp_path, [LAMBDA], model=bf16_lambda(), weights=[1, 0, 1, 0, 1, 0, 1, 1], max_steps=8)
    with pytest.raises(RuntimeError, match="thinking_residual_Lambda"):
        trainer.train()
    assert trainer.state.global_step == 7


def test_accumulated_batches_count_as_one_step(tmp_path):
    trainer = watched(tmp_path, [LAMBDA], model=bf16_lambda(), gradient_accumulation_steps=2)
    with pytest.raises(RuntimeError, match="thinking_residual_Lambda"):
        trainer.train()
    assert trainer.state.global_step == 4


def test_the_patience_can_be_set(tmp_path):
    trainer = watched(tmp_path, [LAMBDA], ParameterGroupWatch(patience=2), model=bf16_lambda())
    with pytest.raises(RuntimeError, match="no value changed in 2 steps"):
        trainer.train()


def test_a_patience_of_zero_is_refused():
    with pytest.raises(ValueError, match="`patience` must be at least 1, got 0"):
        ParameterGroupWatch(patience=0)


def test_a_gradient_that_stays_zero_stops_the_run_although_decay_moves_the_group(tmp_path):
    trainer = watched(tmp_path, [PROJECTION])
    trainer.model.model.projection_scale = 0.0
    with pytest.raises(RuntimeError, match=r"'thinking_projection' .* exactly zero in 5 steps"):
        trainer.train()


def test_a_gradient_that_is_zero_only_at_first_is_left_alone(tmp_path):
    """As LoRA's A, whose gradient is zero until B has moved."""

    def connect(step, model):
        model.model.projection_scale = float(step > 2)

    trainer = watched(tmp_path, [PROJECTION], callbacks=[BeforeStep(connect)])
    trainer.train()
    assert trainer.state.global_step == 7


def test_a_proven_group_without_gradient_is_counted(tmp_path, caplog):
    def disconnect(step, model):
        model.model.connected = step < 5

    watch = ParameterGroupWatch()
    with caplog.at_level(logging.WARNING):
        watched(tmp_path, [GATE, PROJECTION], watch, callbacks=[BeforeStep(disconnect)]).train()
    assert watch.group_steps_without_gradient == {GATE.pattern: 0, PROJECTION.pattern: 3}
    assert "'thinking_projection' had no gradient in 3 of 7 steps" in caplog.text


def test_steps_without_any_gradient_are_counted_and_warned_of_once(tmp_path, caplog):
    watch = ParameterGroupWatch()
    with caplog.at_level(logging.WARNING):
        watched(tmp_path, [GATE, LAMBDA], watch, weights=[0] * 7).train()
    assert watch.steps_without_gradient == 7
    assert caplog.text.count("has no gradient at all") == 1
    assert "7 of 7 steps had no gradient at all" in caplog.text


def test_a_second_run_counts_anew(tmp_path):
    watch = ParameterGroupWatch()
    trainer = watched(tmp_path, [GATE], watch, weights=[0] * 7)
    trainer.train()
    trainer.train()
    assert watch.steps_without_gradient == 7


def test_a_proven_watch_reads_one_gradient_a_step(tmp_path, monkeypatch):
    reads = []
    original = parameter_group_watch._has_gradient
    monkeypatch.setattr(parameter_group_watch, "_has_gradient", lambda p: reads.append(p) or original(p))

    class After(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            counts.append(len(reads))

    counts, model = [], make_model()
    model.unused = torch.nn.Parameter(torch.zeros(1))  # the smallest, read first, and without a gradient
    watched(tmp_path, [GATE, LAMBDA, PROJECTION], model=model, callbacks=[After()]).train()
    assert [late - early for early, late in itertools.pairwise(counts)] == [1] * 6


# The watch, called by hand: what needs other hardware


def call(watch, event, model, optimizer):
    getattr(watch, event)(None, TrainerState(), TrainerControl(), model=model, optimizer=optimizer)


def unmoving_steps(watch, model, optimizer, steps):
    call(watch, "on_train_begin", model, optimizer)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        call(watch, "on_pre_optimizer_step", model, optimizer)
        call(watch, "on_optimizer_step", model, optimizer)


@pytest.mark.parametrize("skipped", [True, False])
def test_only_steps_that_a_loss_scaler_did_not_skip_count(model, skipped):
    optimizer = make_optimizer(model)
    apply_parameter_groups(optimizer, model.named_parameters(), [GATE])
    prepared = Accelerator(cpu=True).prepare(optimizer)
    prepared._is_overflow = skipped
    if skipped:
        unmoving_steps(ParameterGroupWatch(), model, prepared, 6)
    else:
        with pytest.raises(RuntimeError, match="thinking_residual_gate"):
            unmoving_steps(ParameterGroupWatch(), model, prepared, 6)


def test_under_deepspeed_missing_gradients_mean_nothing(model, caplog):
    optimizer = make_optimizer(model)
    apply_parameter_groups(optimizer, model.named_parameters(), [GATE])
    Accelerator(cpu=True)
    wrapper = DeepSpeedOptimizerWrapper(optimizer)
    watch = ParameterGroupWatch()
    with caplog.at_level(logging.WARNING):
        call(watch, "on_train_begin", model, wrapper)
        for _ in range(6):
            call(watch, "on_pre_optimizer_step", model, wrapper)
            call(watch, "on_optimizer_step", model, wrapper)
    assert watch.steps_without_gradient == 0
    assert caplog.text.count("DeepSpeed keeps gradients to itself") == 1
