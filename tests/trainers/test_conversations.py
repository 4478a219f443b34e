"""Rollouts of several turns, with tools and environments: what is recorded, and that the update reads it so."""

import json
import os

import pytest
import torch
from launching import run_ranks
from quiet_training import STEP_BY_STEP
from safetensors.torch import load_file
from tool_talk import Dictionary, look_up, questions, talk_reward, talking, turn_ends
from transformers import Qwen2ForCausalLM, TrainerCallback
from trl import GRPOTrainer

from hf_evidenceflow import HRPOConfig, HRPOTrainer, load_thinking_model
from hf_evidenceflow.models.thinking.thinking_rollout import ThinkingRollout
from hf_evidenceflow.trainers import thinking_rollouts
from hf_evidenceflow.trainers.conversations import Conversations, prompt_thinking


WIDE = {"thinking_residual_r_min": 0.5, "thinking_residual_r_max": 0.6}


# Records


def rollout_of(completions, first):
    """States that tell the token, its turn and row: `first` + the place in the call."""
    longest = max(map(len, completions))
    values = torch.arange(len(completions) * longest, dtype=torch.float32).view(len(completions), longest) + first
    mask = torch.ones(len(completions), longest, dtype=torch.bool)
    return ThinkingRollout(values[..., None].repeat(1, 1, 2), mask, values, values, values, values)


def turn(conversations, prompts, completions, first):
    rows = conversations.of(prompts)
    thoughts, rollout = prompt_thinking(rows, prompts), rollout_of(completions, first)
    for index, row in enumerate(rows):
        row.add(prompts[index], completions[index], rollout, index)
    return thoughts


def test_turns_stand_at_their_places_and_what_tools_said_is_text():
    conversations = Conversations()
    prompts = [[1, 2], [3], [4]]
    assert turn(conversations, prompts, [[5, 6], [7], [8, 9, 5]], first=10) == {}
    # The second row ends, tools say one token and two
    later = [[1, 2, 5, 6, 90], [4, 8, 9, 5, 91, 92]]
    thoughts = turn(conversations, later, [[6], [7, 8]], first=30)
    assert thoughts["thinking_states"][..., 0].tolist() == [[0, 0, 10, 11, 0], [16, 17, 18, 0, 0]]
    assert thoughts["thinking_mask"].int().tolist() == [[0, 0, 1, 1, 0], [1, 1, 1, 0, 0]]
    joined = conversations.joined(prompts, [[5, 6, 90, 6], [7], [8, 9, 5, 91, 92, 7, 8]])
    assert joined.states[..., 1].tolist() == [
        [10, 11, 0, 30, 0, 0, 0],
        [13, 0, 0, 0, 0, 0, 0],
        [16, 17, 18, 0, 0, 32, 33],
    ]
    assert joined.mask.sum(1).tolist() == [3, 1, 5]
    assert joined.embeds_ratio[1].tolist() == [13, 1, 1, 1, 1, 1, 1]


def test_a_completion_may_be_cut_in_its_last_turn():
    conversations = Conversations()
    turn(conversations, [[1]], [[5, 6]], first=10)
    turn(conversations, [[1, 5, 6, 90]], [[7, 8, 9]], first=30)
    assert conversations.joined([[1]], [[5, 6, 90, 7]]).logps.tolist() == [[10, 11, 0, 30]]


def test_of_two_rows_that_are_alike_the_second_may_go_on():
    conversations = Conversations()
    turn(conversations, [[1], [1]], [[5], [5]], first=10)
    turn(conversations, [[1, 5, 90]], [[7]], first=30)
    joined = conversations.joined([[1], [1]], [[5], [5, 90, 7]])
    assert joined.mask.int().tolist() == [[1, 0, 0], [1, 0, 1]]


def test_a_turn_of_other_tokens_is_an_error():
    conversations = Conversations()
    turn(conversations, [[1]], [[5]], first=10)
    with pytest.raises(RuntimeError, match="does not go on with the completion of a row"):
        conversations.of([[1, 6, 90]])
    with pytest.raises(RuntimeError, match="The completion of row 0 is not what was rolled out"):
        conversations.joined([[1]], [[6]])


# Training


@pytest.fixture
def make_trainer(plain_checkpoint, tokenizer, tmp_path):
    def make(mode="projection", model=None, cls=HRPOTrainer, environment=None, output="out", callbacks=None, **args):
        args = {
            "output_dir": str(tmp_path / output),
            **STEP_BY_STEP,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "max_steps": 2,
            "max_completion_length": 32,
            "max_tool_calling_iterations": 2,
            "generation_kwargs": {"eos_token_id": turn_ends(tokenizer)},
            "temperature": 1.0,
            "save_strategy": "no",
            "parity_check_steps": 1,
            "parity_tolerance": 1e-4,
            "learning_rate": 1e-3,
            "beta": 0.0,
            "seed": 3,
            **args,
        }
        if model is None:
            torch.manual_seed(5)
            model = load_thinking_model(plain_checkpoint, thinking_mode=mode, **WIDE)
        given = {"tools": [look_up]} if environment is None else {"environment_factory": environment}
        return cls(
            model,
            talk_reward,
            args=HRPOConfig(**args),
            train_dataset=questions(),
            processing_class=talking(tokenizer),
            callbacks=callbacks,
            **given,
        )

    return make


def history(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def kept_batches(trainer, monkeypatch):
    """What `_generate_and_score_completions` returns while it trains."""
    batches, original = [], HRPOTrainer._generate_and_score_completions

    def keep(self, inputs):
        batches.append(original(self, inputs))
        return batches[-1]

    monkeypatch.setattr(HRPOTrainer, "_generate_and_score_completions", keep)
    trainer.train()
    return batches


@pytest.mark.parametrize("mode", ["projection", "embedding", "soft"])
@pytest.mark.parametrize("engine", [True, False])
def test_the_update_reads_each_turn_as_the_rollout_did(make_trainer, mode, engine, monkeypatch):
    trainer = make_trainer(mode, use_rollout_engine=engine, train_thought_tokens=True, seed=4)
    batches = kept_batches(trainer, monkeypatch)
    assert len(history(trainer, "thinking/parity_gap")) == 2
    assert max(history(trainer, "thinking/parity_gap")) <= 1e-4
    assert min(history(trainer, "tools/call_frequency")) > 0.2
    wrote, thought = batches[0]["tool_mask"].bool(), batches[0]["thinking_mask"]
    ends = [row.nonzero().max().item() for row in ~wrote & batches[0]["completion_mask"].bool() if row.any()]
    assert ends and not (thought & ~wrote).any()  # what tools say is text
    assert any(row[min(ends) :].any() for row in thought)  # later turns think


@pytest.mark.parametrize("mutation", ["shift", "forget"])
def test_wrong_states_of_an_earlier_turn_break_parity(make_trainer, mutation, monkeypatch):
    def wrong(rows, prompt_ids):
        thoughts = prompt_thinking(rows, prompt_ids)
        if mutation == "forget" or not thoughts:
            return {}
        return thoughts | {"thinking_states": thoughts["thinking_states"].roll(1, dims=1)}

    monkeypatch.setattr(thinking_rollouts, "prompt_thinking", wrong)
    with pytest.raises(RuntimeError, match="Parity check failed at step 0"):
        make_trainer().train()


def test_an_environment_talks_to_a_model_that_thinks(make_trainer):
    trainer = make_trainer(environment=Dictionary)
    trainer.train()
    assert len(history(trainer, "thinking/parity_gap")) == 2
    assert min(history(trainer, "tools/call_frequency")) > 0.2
    assert history(trainer, "rewards/Dictionary/mean")


def test_mode_none_with_tools_trains_as_grpo(make_trainer, plain_checkpoint, tokenizer):
    batches = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "max_steps": 3}
    hrpo = make_trainer("none", use_rollout_engine=False, **batches)
    hrpo.train()
    grpo = make_trainer(model=Qwen2ForCausalLM.from_pretrained(plain_checkpoint), cls=GRPOTrainer, **batches)
    grpo.eos_token_ids = turn_ends(tokenizer)  # TRL looks for the tokenizer's only
    grpo.train()
    for key in ("loss", "reward", "grad_norm", "tools/call_frequency", "completions/mean_length"):
        assert len(history(hrpo, key)) == 3
        assert history(hrpo, key) == pytest.approx(history(grpo, key), rel=1e-6, abs=1e-6)


class StopAfter(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= 1


def test_a_run_with_tools_resumes_bit_exactly(make_trainer):
    settings = {"steps_per_generation": 4, "max_steps": 3}
    whole = make_trainer(output="whole", **settings)
    whole.train()
    first = make_trainer(output="parts", save_strategy="steps", save_steps=1, callbacks=[StopAfter()], **settings)
    first.train()
    resumed = make_trainer(output="parts", **settings)
    resumed.train(resume_from_checkpoint=os.path.join(first.args.output_dir, "checkpoint-1"))
    for expected, found in zip(whole.model.state_dict().values(), resumed.model.state_dict().values()):
        assert torch.equal(expected, found)


@pytest.mark.slow
def test_processes_may_differ_in_their_number_of_turns(plain_checkpoint, tmp_path):
    run_ranks("tools_worker.py", plain_checkpoint, tmp_path)
    reports = [json.loads((tmp_path / f"report-{rank}.json").read_text()) for rank in (0, 1)]
    assert reports[0]["turns"] == 2 and reports[1]["turns"] > 3
    gaps = [row["thinking/parity_gap"] for row in reports[1]["log"] if "thinking/parity_gap" in row]
    assert len(gaps) == 2 and max(gaps) <= 1e-4
    first, second = (load_file(tmp_path / f"weights-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_idle_thoughts_and_what_tools_say_are_left_out_of_the_loss(make_trainer, monkeypatch):
    batches = kept_batches(make_trainer("soft", max_steps=1), monkeypatch)
    counted, thought = batches[0]["tool_mask"].bool(), batches[0]["thinking_mask"]
    said = ~thought & ~counted & batches[0]["completion_mask"].bool()
    assert said.any()  # by tools


def test_completions_that_end_at_a_stop_string_are_counted_over_all_turns(make_trainer):
    settings = {"stop_strings": ["K", "L", "M", "N"]}
    trainer = make_trainer("none", generation_kwargs=settings, max_completion_length=48, num_generations_eval=2)
    trainer.train()
    assert min(history(trainer, "tools/call_frequency")) > 0
    assert all(share < 1 for share in history(trainer, "completions/clipped_ratio"))


def test_a_rollout_function_is_refused(plain_checkpoint, tmp_path):
    args = HRPOConfig(str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(ValueError, match="`rollout_func` with `thinking_mode='projection'` is not supported"):
        HRPOTrainer(plain_checkpoint, talk_reward, args=args, train_dataset=questions(), rollout_func=len)


def test_tools_are_refused_on_vllm(make_trainer):
    with pytest.raises(ValueError, match="`tools` with `use_vllm=True` and `thinking_mode='projection'`"):
        make_trainer(use_vllm=True, vllm_mode="colocate")
