"""The update with shared prompts: the padded update's numbers, with all it is combined with; what it leaves out."""

import dataclasses

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from quiet_training import STEP_BY_STEP
from tiny_models import TINY
from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

from hf_evidenceflow import HRPOConfig, HRPOTrainer, load_thinking_model
from hf_evidenceflow.rollouts.packed_prompts import PackedGroup, PackedPrompts, pack_prompts
from hf_evidenceflow.rollouts.support import packing_reason
from hf_evidenceflow.trainers import update_passes


WIDE = {"thinking_residual_r_min": 0.5, "thinking_residual_r_max": 0.6}
LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")


def vowels(completions, **kwargs):
    return [float(sum(char in "aeiou" for char in text)) for text in completions]


@pytest.fixture
def make_trainer(plain_checkpoint, tmp_path):
    def make(mode="projection", reward=vowels, peft_config=None, fields=None, **overrides):
        args = {
            "output_dir": str(tmp_path),
            **STEP_BY_STEP,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 1,
            "num_generations": 4,
            "max_completion_length": 7,
            "temperature": 1.0,
            "save_strategy": "no",
            "beta": 0.0,
            "seed": 3,
            "parity_check_steps": 0,
        }
        torch.manual_seed(5)
        prompts = [{"prompt": prompt} for prompt in ("Tom has 3", "Ann?", "7+2=", "abc", "d")]
        return HRPOTrainer(
            load_thinking_model(plain_checkpoint, thinking_mode=mode, **WIDE, **(fields or {})),
            reward,
            args=HRPOConfig(**(args | overrides)),
            train_dataset=Dataset.from_list(prompts * 4),
            processing_class=AutoTokenizer.from_pretrained(plain_checkpoint),
            peft_config=peft_config,
        )

    return make


def batch_of(trainer):
    """The first batch of an update, as the training loop gets it."""
    trainer.create_optimizer()
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))


def update(trainer, batch, shared):
    """Loss and gradients of a batch, with shared prompts or padded."""
    trainer.args.share_prompts_in_update = shared
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, dict(batch))
    loss.backward()
    return loss.item(), [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]


def gap(trainer, batch):
    """Relative distance of the two ways' losses, and the largest of their gradients."""
    (loss, gradients), (padded_loss, padded) = update(trainer, batch, True), update(trainer, batch, False)
    assert len(gradients) == len(padded)
    norm = torch.stack([grad.norm() for grad in padded]).norm()
    return abs(loss - padded_loss) / max(1, abs(padded_loss)), max(
        ((ours - theirs).norm() / norm).item() for ours, theirs in zip(gradients, padded)
    )


def assert_same(trainer):
    batch = batch_of(trainer)
    # A loss whose ratios are 1 would hide wrong ones
    batch["old_per_token_logps"] = torch.full_like(
        batch["advantages"][:, None].expand(batch["completion_ids"].shape), -3
    )
    loss, gradient = gap(trainer, batch)
    assert loss <= 1e-5 and gradient <= 1e-5
    return trainer


@pytest.mark.parametrize("mode", ["none", "projection", "embedding", "soft"])
def test_the_update_is_the_padded_one_in_each_mode(make_trainer, mode):
    assert_same(make_trainer(mode, train_thought_tokens=True))


@pytest.mark.parametrize("mode", ["coconut", "codi", "pause"])
def test_the_update_is_the_padded_one_in_each_latent_mode(make_trainer, mode):
    thoughts = {"thinking_count": 3, "thinking_placeholder_id": 60}
    assert_same(make_trainer(mode, fields=thoughts, train_thought_tokens=True, max_completion_length=9))


@pytest.mark.parametrize("loss_type", LOSSES)
def test_the_update_is_the_padded_one_for_each_loss(make_trainer, loss_type):
    assert_same(make_trainer(loss_type=loss_type))


@pytest.mark.parametrize(
    "settings",
    [
        {"beta": 0.3},
        {"top_entropy_quantile": 0.4},
        {"entropy_coef": 0.1},
        {"importance_sampling_level": "sequence"},
        {"update_max_tokens": 20},
        {"gradient_checkpointing": True},
        {"cast_lm_head_to_fp32": True},
        {"num_iterations": 2},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_the_update_is_the_padded_one_with(make_trainer, settings):
    assert_same(make_trainer(**settings))


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_the_update_is_the_padded_one_with_an_adapter_and_its_reference(make_trainer, gradient_checkpointing):
    assert_same(make_trainer(peft_config=LoraConfig(r=3), beta=0.3, gradient_checkpointing=gradient_checkpointing))


def test_the_update_is_the_padded_one_where_members_attend_as_a_batch(make_trainer, monkeypatch):
    """As on a GPU."""

    def batched(*args):
        return [dataclasses.replace(pack, batched=True) for pack in pack_prompts(*args)]

    monkeypatch.setattr(update_passes, "pack_prompts", batched)
    assert_same(make_trainer())


def passes(trainer, batch, shared):
    """Log-probabilities and entropies of a batch, 0 where it has no token."""
    trainer.args.share_prompts_in_update = shared
    trainer._thinking = batch["thinking_states"], batch["thinking_mask"]
    ids, mask = (torch.cat([batch[f"prompt_{name}"], batch[f"completion_{name}"]], 1) for name in ("ids", "mask"))
    with torch.no_grad():
        found = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, batch["completion_ids"].shape[1], compute_entropy=True
        )
    return [values * batch["completion_mask"] for values in found[:2]]


def test_log_probabilities_and_entropies_are_the_padded_ones(make_trainer):
    trainer = make_trainer()
    batch = batch_of(trainer)
    for found, expected in zip(passes(trainer, batch, True), passes(trainer, batch, False)):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_in_bf16_they_are_the_padded_ones_within_the_tolerance_of_parity(make_trainer):
    trainer = make_trainer(bf16=True)
    batch = batch_of(trainer)
    count = batch["completion_mask"].sum()
    for found, expected in zip(*(passes(trainer, batch, shared) for shared in (True, False))):
        assert (found - expected).abs().sum() / count <= 2e-2
    assert trainer._packing and trainer.accelerator.mixed_precision == "bf16"


@pytest.mark.parametrize("field", ["old_per_token_logps", "ref_per_token_logps"])
def test_old_and_reference_log_probabilities_are_the_padded_ones(make_trainer, field):
    found = []
    for shared in (True, False):
        trainer = make_trainer(num_iterations=2, beta=0.3, share_prompts_in_update=shared)
        batch = batch_of(trainer)
        found.append(batch[field] * batch["completion_mask"])
    assert found[0].abs().max() > 1 and torch.allclose(*found, atol=1e-5)


@pytest.fixture
def mutated(monkeypatch, request):
    """The named fault."""
    pack = PackedGroup.attend

    def sees_others(self, queries, keys, values, *rest):
        sizes = [key.shape[1] for key in keys]
        return pack(self, queries, torch.cat(keys, 1).roll(1, 1).split(sizes, 1), values, *rest)

    def own_mask_only_prompt(self, queries, keys, values, *rest):
        if self.prompt:
            yield queries[0].transpose(0, 1)
        blind = PackedGroup(0, self.members, self.mask[..., -self.mask.shape[2] :])
        yield from pack(blind, *([parts[0][:, :0], *parts[1:]] for parts in (queries, keys, values)), *rest)

    gather, init = PackedPrompts.gather, PackedPrompts.__init__

    def positions_run_on(self, ids, positions, *rest):
        init(self, ids, torch.arange(positions.shape[1])[None], *rest)

    scored = update_passes.scored_states

    faults = {
        "a completion sees another's tokens": (PackedGroup, "attend", sees_others),
        "a completion does not see its prompt": (PackedGroup, "attend", own_mask_only_prompt),
        "positions run on": (PackedPrompts, "__init__", positions_run_on),
        "the first token's logits come from elsewhere": (
            *(update_passes, "scored_states"),
            lambda decoder, positions: scored(
                decoder, positions.where(positions.diff(prepend=positions[:1] - 2) == 1, 0)
            ),
        ),
        "states are shifted by one": (PackedPrompts, "gather", lambda self, columns: gather(self, columns).roll(1, 1)),
    }
    monkeypatch.setattr(*faults[request.param])


@pytest.mark.parametrize(
    "mutated",
    [
        "a completion sees another's tokens",
        "a completion does not see its prompt",
        "positions run on",
        "the first token's logits come from elsewhere",
        "states are shifted by one",
    ],
    indirect=True,
)
def test_the_comparison_finds(make_trainer, monkeypatch, mutated):
    monkeypatch.setattr(update_passes, "packing_reason", lambda model: None)
    trainer = make_trainer()
    batch = batch_of(trainer)
    batch["old_per_token_logps"] = torch.full_like(
        batch["advantages"][:, None].expand(batch["completion_ids"].shape), -3
    )
    assert max(gap(trainer, batch)) > 1e-3


# What is left out


def halves(completions, **kwargs):
    """The first prompt's completions differ, the others' do not."""
    return [float(index) if index < 4 else 1.0 for index in range(len(completions))]


def counted_tokens(trainer, monkeypatch):
    seen = []
    original = update_passes.pack_prompts

    def count(*args, **kwargs):
        packs = original(*args, **kwargs)
        seen.append(sum(pack.ids.shape[1] for pack in packs))
        return packs

    monkeypatch.setattr(update_passes, "pack_prompts", count)
    return seen


def test_rows_without_an_advantage_are_left_out_exactly(make_trainer, monkeypatch):
    trainer = make_trainer(reward=halves)
    batch = batch_of(trainer)
    assert (batch["advantages"] == 0).sum() == 4
    tokens = counted_tokens(trainer, monkeypatch)
    loss, gradient = gap(trainer, batch)
    assert loss <= 1e-5 and gradient <= 1e-5
    update(trainer, {**batch, "advantages": torch.ones(8)}, True)
    assert tokens[0] < 0.7 * tokens[1]
    assert trainer._metrics["train"]["update/idle_rows"][0] == 0.5


def test_their_metrics_are_means_of_the_other_rows(make_trainer):
    trainer = make_trainer(reward=halves)
    batch = batch_of(trainer)
    update(trainer, batch, True)
    kept = batch["advantages"] != 0
    trainer.args.share_prompts_in_update = False
    rows = {name: value[kept] if value is not None and value.ndim else value for name, value in batch.items()}
    update(trainer, rows, False)
    shared, padded = trainer._metrics["train"]["entropy"]
    assert shared == pytest.approx(padded, rel=1e-5)


def test_a_batch_without_any_advantage_still_has_a_graph(make_trainer):
    trainer = make_trainer(reward=lambda completions, **kwargs: [1.0] * len(completions))
    loss, gradients = update(trainer, batch_of(trainer), True)
    assert loss == 0 and gradients and all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("settings", [{"beta": 0.3}, {"entropy_coef": 0.1}, {"top_entropy_quantile": 0.4}])
def test_nothing_is_left_out_where_other_terms_need_it(make_trainer, settings):
    trainer = make_trainer(reward=halves, **settings)
    update(trainer, batch_of(trainer), True)
    assert trainer._metrics["train"]["update/idle_rows"] == [0.0]


# Where rows are, and where packing does not fit


def test_completions_of_a_prompt_are_in_one_batch_of_an_accumulation(make_trainer):
    trainer = make_trainer(per_device_train_batch_size=4, gradient_accumulation_steps=4)
    batch_of(trainer)
    batches = trainer._buffered_inputs
    assert len(batches) == 4
    assert all(len({tuple(ids) for ids in batch["prompt_ids"].tolist()}) == 1 for batch in batches)


def test_bringing_them_together_keeps_each_row_whole(make_trainer):
    trainer = make_trainer(per_device_train_batch_size=4, gradient_accumulation_steps=4, share_prompts_in_update=False)
    batch_of(trainer)
    batches = trainer._buffered_inputs

    def rows(batches):
        names = [name for name, value in batches[0].items() if value is not None and value.ndim]
        return sorted(
            str([batch[name][row].tolist() for name in names])
            for batch in batches
            for row in range(len(batch["prompt_ids"]))
        )

    assert rows(update_passes.together(batches)) == rows(batches)


def test_a_model_with_a_sliding_window_goes_to_the_buckets():
    model = MistralForCausalLM(MistralConfig(**TINY, sliding_window=4096))
    assert "Sliding" in packing_reason(model)


def test_the_reason_is_said_once(make_trainer, monkeypatch, caplog):
    monkeypatch.setattr(update_passes, "packing_reason", lambda model: "its layers are odd")
    trainer = make_trainer()
    batch = batch_of(trainer)
    update(trainer, batch, True)
    update(trainer, batch, True)
    assert caplog.text.count("its layers are odd") == 1
