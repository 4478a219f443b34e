"""Instruction templates, sampled chains, the KL of completions, the reward model's function, and the recipe."""

import importlib.util
import itertools
import json

import pytest
import torch
from repository import RECIPES
from tiny_models import TINY
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification

from hf_evidenceflow.evaluation.completions import Completion
from hf_evidenceflow.recipes.course.instruction_tuning import chains as chains_module
from hf_evidenceflow.recipes.course.instruction_tuning.alignment_report import (
    alignment_rows,
    alignment_table,
    chain_table,
    plot_alignment,
)
from hf_evidenceflow.recipes.course.instruction_tuning.chains import SampledChains, preference_pairs, sample_chains
from hf_evidenceflow.recipes.course.instruction_tuning.policy_kl import completion_kl, sampled_kl
from hf_evidenceflow.recipes.course.instruction_tuning.reward_model import reward_model_function
from hf_evidenceflow.recipes.course.instruction_tuning.templates import (
    INSTRUCTIONS,
    build_instruction_tokenizer,
    instruction_mixture,
    render_instruction,
)
from hf_evidenceflow.recipes.course.shared.picture_rows import PictureRows
from hf_evidenceflow.tasks import generate_word_problems, grade


RECIPE = RECIPES / "course" / "instruction_tuning" / "run.py"
PROBLEM = {"question": "Ann has 3 pens. Ann buys 4. How many?", "answer": "3+4=7\n7-2=5\n#### 5"}


# Instructions


def test_every_wording_that_ends_in_the_answer_is_graded_right():
    for task in ("explain", "answer"):
        for template in INSTRUCTIONS[task]:
            assert grade(render_instruction(PROBLEM, template)["completion"], PROBLEM["answer"]) == 1


def test_no_prompt_gives_its_completion_away():
    for task, templates in INSTRUCTIONS.items():
        for template in templates:
            prompt = render_instruction(PROBLEM, template)["prompt"]
            hidden = PROBLEM["question"] if task == "invert" else "3+4=7"
            assert hidden not in prompt and "####" not in prompt


def test_the_order_of_steps_and_answer_is_that_of_the_task():
    explained, justified = (render_instruction(PROBLEM, INSTRUCTIONS[task][0]) for task in ("explain", "justify"))
    assert explained["completion"] == "3+4=7\n7-2=5\n#### 5"
    assert justified["completion"] == "#### 5\n3+4=7\n7-2=5"


def test_a_mixture_has_the_tasks_in_equal_shares_and_every_wording():
    rows = instruction_mixture(generate_word_problems(400), seed=1)
    counts = [sum(row["task"] == task for row in rows) for task in INSTRUCTIONS]
    assert counts == [100] * len(INSTRUCTIONS)
    seen = {(row["task"], *(word in row["prompt"] for word in ("step by step", "Think", "Question:"))) for row in rows}
    assert len([item for item in seen if item[0] == "explain"]) == len(INSTRUCTIONS["explain"])


def test_the_tokenizer_gives_every_instruction_back():
    tokenizer = build_instruction_tokenizer()
    for row in instruction_mixture(generate_word_problems(200)):
        text = row["prompt"] + row["completion"]
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_an_unknown_task_is_an_error_with_its_name():
    with pytest.raises(ValueError, match="sing"):
        instruction_mixture([PROBLEM], ["explain", "sing"])


def test_an_answer_without_a_marker_is_an_error():
    with pytest.raises(ValueError, match="3\\+4=7"):
        render_instruction({"question": "?", "answer": "3+4=7"}, INSTRUCTIONS["explain"][0])


# Chains


@pytest.fixture
def drawn(monkeypatch):
    """Chains as a model might draw them: (text, finished) for each sample of two questions."""
    texts = [
        [("1+1=2\n#### 2", True), ("1+1=2\n#### 2", True), ("#### 3", True), ("#### 2", False)],
        [("#### 9", True), ("5+4=9\n#### 9", True), ("9", True), ("#### 8", True)],
    ]

    def generate(model, tokenizer, prompts, num_samples, **kwargs):
        # Not in the order of the prompts, as the real one
        for index, sample in reversed(list(itertools.product(range(2), range(num_samples)))):
            text, finished = texts[index][sample]
            yield [Completion(index, sample, prompts[index], text, 3, 5, finished, None, None, 0.0)]

    monkeypatch.setattr(chains_module, "generate_completions", generate)
    return sample_chains(None, None, ["one", "two"], ["#### 2", "#### 9"], num_samples=4, max_new_tokens=9)


def test_chains_are_sorted_by_their_answer_and_kept_once(drawn):
    assert drawn[0].right == ("1+1=2\n#### 2",)
    assert drawn[1].right == ("#### 9", "5+4=9\n#### 9")
    assert drawn[1].wrong == ("9", "#### 8")
    assert [item.right_share for item in drawn] == [0.5, 0.5]


def test_a_chain_that_was_cut_off_is_wrong_whatever_it_says(drawn):
    assert drawn[0].wrong == ("#### 3", "#### 2")


def test_an_answer_before_its_steps_is_graded_as_that_answer():
    problem = {"question": "Leo has 4 cards. Leo wins 1.", "answer": "4+1=5\n#### 5"}
    for task in chains_module.ORDERS.values():
        grader = chains_module.grade_first_line if task == "justify" else grade
        for template in INSTRUCTIONS[task]:
            completion = render_instruction(problem, template)["completion"]
            assert grader(completion, problem["answer"]) == 1
    assert chains_module.grade_first_line("#### 4\n4+1=5", problem["answer"]) == 0


def test_pairs_join_a_right_and_a_wrong_chain_of_one_question_without_repeating(drawn):
    pairs = preference_pairs(drawn, per_question=5)
    by_prompt = {item.prompt: item for item in drawn}
    assert [pair["prompt"] for pair in pairs] == ["one", "two", "two"]
    for pair in pairs:
        assert pair["chosen"] in by_prompt[pair["prompt"]].right
        assert pair["rejected"] in by_prompt[pair["prompt"]].wrong
    assert len({pair["chosen"] for pair in pairs}) == len({pair["rejected"] for pair in pairs}) == 3


def test_a_question_with_chains_of_one_kind_has_no_pair():
    assert preference_pairs([SampledChains("?", ("a", "b"), (), 1.0), SampledChains("!", (), ("c",), 0.0)]) == []


def test_each_prompt_needs_an_answer():
    with pytest.raises(ValueError, match="got 1 for 2"):
        sample_chains(None, None, ["one", "two"], ["1"], num_samples=2, max_new_tokens=3)


# KL and reward model


@pytest.fixture
def two_models():
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(Qwen2ForCausalLM(Qwen2Config(**TINY | {"vocab_size": 5}, initializer_range=0.3)).eval())
    return models


def test_the_mean_over_draws_is_the_kl_over_all_completions(two_models):
    policy, reference = two_models
    prompt, length = [2, 3], 3
    every = torch.tensor([prompt + list(rest) for rest in itertools.product(range(5), repeat=length)])  # [125, 5]
    with torch.no_grad():
        logps, ref_logps = (
            model(every).logits.log_softmax(-1)[:, 1:-1].gather(2, every[:, 2:, None]).sum((1, 2))
            for model in two_models
        )
    expected = (logps.exp() * (logps - ref_logps)).sum()
    ones = torch.ones_like(every)
    terms = completion_kl(policy, reference, every, ones[:, :2], ones[:, 2:])
    torch.testing.assert_close((logps.exp() * terms).sum(), expected, atol=1e-5, rtol=1e-4)


def test_padding_changes_no_kl(two_models):
    ids = torch.tensor([[2, 3, 4, 1]])
    mask = torch.ones_like(ids)
    plain = completion_kl(*two_models, ids, mask[:, :2], mask[:, 2:])
    padded = torch.tensor([[0, 0, 2, 3, 4, 1, 0, 0]])
    prompt_mask, completion_mask = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[1, 1, 0, 0]])
    # Position ids follow from the mask in `generate` only: the rotary embedding sees differences alone
    torch.testing.assert_close(completion_kl(*two_models, padded, prompt_mask, completion_mask), plain)


def test_a_model_has_no_distance_to_itself_and_some_to_another(two_models, tokenizer):
    torch.manual_seed(0)
    one, other = (Qwen2ForCausalLM(Qwen2Config(**TINY, initializer_range=0.2)).eval() for _ in range(2))
    assert sampled_kl(one, one, tokenizer, ["abc", "d"], max_new_tokens=4) == 0
    assert sampled_kl(one, other, tokenizer, ["abc", "d"], max_new_tokens=4) > 0.1


def test_the_reward_model_is_asked_at_the_end_of_sequence_as_it_was_trained(tokenizer):
    torch.manual_seed(0)
    model = Qwen2ForSequenceClassification(Qwen2Config(**TINY, num_labels=1, initializer_range=0.2)).eval()
    score = reward_model_function(model, tokenizer, batch_size=1)
    end = tokenizer.eos_token_id
    ended, cut = score(["ab", "ab"], ["cd", "cd"], [[5, end], [5, 6]])
    for text, expected in (("abcd</s>", ended), ("abcd", cut)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits
        assert logits.item() == pytest.approx(expected, abs=1e-5)
    assert ended != cut


def test_scores_of_a_batch_do_not_depend_on_its_padding(tokenizer):
    torch.manual_seed(0)
    model = Qwen2ForSequenceClassification(Qwen2Config(**TINY, num_labels=1, initializer_range=0.2)).eval()
    rows = (["ab", "abcdefg"], ["cd", "hij"], [[1], [1]])
    assert reward_model_function(model, tokenizer)(*rows) == pytest.approx(
        reward_model_function(model, tokenizer, batch_size=1)(*rows), abs=1e-5
    )


# Report and recipe


def test_the_table_has_a_row_for_each_model():
    accuracy = {"value": 0.5, "low": 0.4, "high": 0.6}
    rows = {"SFT": {"reward": 0.1, "accuracy": accuracy, "kl": 0.0, "seconds": None}}
    table = alignment_table(rows | {"PPO": {"reward": 1.26, "accuracy": accuracy, "kl": 2.0, "seconds": 31.4}})
    assert table.splitlines()[2] == "| SFT | 0.10 | 0.50 [0.40, 0.60] | 0.00 |  |"
    assert table.splitlines()[3] == "| PPO | 1.26 | 0.50 [0.40, 0.60] | 2.00 | 31 |"


def test_the_picture_has_reward_distance_and_chains(tmp_path):
    accuracy = {"value": 0.5, "low": 0.4, "high": 0.6}
    kls = {"SFT": 0.0, "DPO": 0.01, "PPO": 2.0}  # the first two lie on each other
    rows = {name: {"reward": 0.1, "accuracy": accuracy, "kl": kl} for name, kl in kls.items()}
    log = [{"step": step, "reward": step / 2, "kl": step / 3} for step in range(5)]
    chains = {"steps": accuracy, "the answer, alone": accuracy}
    drawn = alignment_rows(rows, {"PPO": log, "DPO": log[:1]}, chains, {"base_right_share": 0.4})
    assert set(drawn["curves"]["PPO"]) == {"reward", "kl"}
    shown = PictureRows("instruction_tuning", [0], {}, **drawn)
    assert plot_alignment(shown, tmp_path / "picture.png").exists()
    assert chain_table(chains).splitlines()[2] == "| steps | 0.50 [0.40, 0.60] |"


@pytest.mark.slow
def test_the_recipe_runs_through_all_stages(tmp_path):
    spec = importlib.util.spec_from_file_location("instruction_tuning", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    metrics = recipe.main(
        [
            *("--output_dir", str(tmp_path), "--train_problems", "256", "--test_problems", "6"),
            *("--chain_problems", "200", "--chains_per_problem", "4", "--base_steps", "60", "--sft_steps", "4"),
            *("--reward_steps", "3", "--dpo_steps", "2", "--rollouts", "1"),
        ]
    )
    models = {"SFT", "PPO", "DPO", "GRPO"}
    assert set(metrics) == {"base_right_share", "reward_model_accuracy", "chains", "seconds"} | models
    assert metrics["SFT"]["kl"] == 0 and min(metrics[name]["kl"] for name in ("PPO", "DPO", "GRPO")) > 0
    assert json.loads((tmp_path / "metrics.json").read_text()).keys() == metrics.keys()
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "finished"
    for file in ("instruction_tuning.md", "instruction_tuning.png", "pairs.json", "ppo/value_head.safetensors"):
        assert (tmp_path / file).exists(), file
