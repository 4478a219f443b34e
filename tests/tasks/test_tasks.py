"""What every task keeps: how its loader reads a file, and how its reward scores."""

import random
import time

import pytest
from task_rows import AIME, ARC, GPQA, GSM8K, MATH, MATH_500, MMLU, OWN, PLATINUM, QA

from hf_evidenceflow.tasks import BENCHMARKS, TASKS, TEST_TASKS, math_reward, multiple_choice_reward, open_qa_reward


# For each task a row in its format, and its answer
EXAMPLES = {
    "gsm8k": (GSM8K, "70,000"),
    "math": (MATH, "\\frac{1}{2}"),
    "mmlu_stem": (MMLU, "C"),
    "arc_challenge": (ARC, "B"),
    "open_qa": (QA, ["Paris", "Lutetia"]),
    "rows": (OWN, "the red cup"),
    "gsm8k_platinum": (PLATINUM, "70,000"),
    "math_500": (MATH_500, "\\frac{1}{2}"),
    "aime25": (AIME, "70"),
    "aime26": (AIME | {"answer": 70}, "70"),
    "gpqa_diamond": (GPQA, "A"),
}
ALL = {**TASKS, **TEST_TASKS}
LOADERS = [(ALL[name].load, row, answer, ALL[name].reward) for name, (row, answer) in EXAMPLES.items()]
REWARDS = (math_reward, multiple_choice_reward, open_qa_reward)
RIGHT = {math_reward: "7", multiple_choice_reward: "B", open_qa_reward: "Paris"}


def test_every_task_has_its_example_here():
    assert EXAMPLES.keys() == ALL.keys()


def test_every_published_test_set_is_that_of_a_task():
    assert all(ALL[name].dataset == benchmark.dataset for name, benchmark in BENCHMARKS.items())


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_grader_of_a_task_takes_its_gold(name):
    gold = EXAMPLES[name][1]
    text = gold if isinstance(gold, str) else gold[-1]
    assert all(reward.grade(f"#### {text}", gold) == 1.0 for reward in ALL[name].graders.values() if name != "gsm8k")


@pytest.mark.parametrize(("load", "row", "answer", "reward"), LOADERS)
def test_loader_gives_a_prompt_and_the_final_answer(write_jsonl, load, row, answer, reward):
    dataset = load(str(write_jsonl("data.jsonl", [row])), split="train")
    assert dataset[0]["answer"] == answer
    assert [message["role"] for message in dataset[0]["prompt"]] == ["system", "user"]


@pytest.mark.parametrize(("load", "row", "answer", "reward"), LOADERS)
def test_loaded_answers_are_what_the_reward_takes(write_jsonl, load, row, answer, reward):
    dataset = load(str(write_jsonl("data.jsonl", [row])), split="train")
    text = answer if isinstance(answer, str) else answer[-1]
    assert reward([f"#### {text}", "#### wrong"], [dataset[0]["answer"]] * 2) == [1.0, 0.0]


@pytest.mark.parametrize(("load", "row", "answer", "reward"), LOADERS)
def test_plain_prompt_without_instruction_is_the_question(write_jsonl, load, row, answer, reward):
    path = str(write_jsonl("data.jsonl", [row]))
    prompt = load(path, split="train", conversational=False, system_prompt=None)[0]["prompt"]
    asked = row.get("question") or row.get("problem") or row["Question"]
    assert asked in prompt and "####" not in prompt and prompt.endswith("\n")


@pytest.mark.parametrize(("load", "row", "answer", "reward"), LOADERS)
def test_max_samples_limits_the_rows(write_jsonl, load, row, answer, reward):
    assert len(load(str(write_jsonl("data.jsonl", [row] * 5)), split="train", max_samples=2)) == 2


@pytest.mark.parametrize(("load", "row", "answer", "reward"), LOADERS)
def test_missing_column_is_an_error(write_jsonl, load, row, answer, reward):
    path = write_jsonl("data.jsonl", [{"text": "a"}])
    with pytest.raises(ValueError, match=r"lacks .*found are text"):
        load(str(path), split="train")


@pytest.mark.parametrize("reward", REWARDS)
def test_reward_takes_strings_and_chat_messages(reward):
    gold = RIGHT[reward]
    chat = [{"role": "assistant", "content": f"Therefore #### {gold}"}]
    assert reward([f"#### {gold}"], [gold]) == reward([chat], [gold]) == [1.0]


@pytest.mark.parametrize("reward", REWARDS)
def test_reward_needs_exactly_one_marker(reward):
    gold = RIGHT[reward]
    assert reward([gold, f"#### {gold} #### {gold}", "####", ""], [gold] * 4) == [0.0] * 4


@pytest.mark.parametrize("reward", REWARDS)
def test_reward_counts_what_cannot_be_read(reward):
    logged = {}
    reward(["no marker", f"#### {RIGHT[reward]}"], ["B", "B"], log_metric=logged.__setitem__)
    assert logged["unparsable"] == 0.5


@pytest.mark.parametrize("reward", REWARDS)
def test_junk_completions_score_0(reward):
    junk = [None, 5, [], [None], {}, [{"content": 5}], object()]
    assert reward(junk, [RIGHT[reward]] * len(junk)) == [0.0] * len(junk)


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize("gold", [None, [], [None], "", " ", object(), float("nan")])
def test_gold_that_cannot_be_graded_by_is_an_error(reward, gold):
    with pytest.raises(ValueError, match="Gold 0 of the batch, in `answer`, cannot be graded by"):
        reward(["no answer"], [gold])


@pytest.mark.parametrize("reward", REWARDS)
def test_answer_is_read_from_a_box_after_thoughts_and_headings(reward):
    gold = RIGHT[reward]
    text = f"<think>#### {gold}?</think>#### Step 1\nRead.\n#### $\\boxed{{\\text{{{gold}}}}}$"
    assert reward([text], [gold]) == [1.0]


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize(
    "piece",
    ["#", "a", "B ", "B. ", "the ", "answer is ", "$", "$a$", "\\(", "\\boxed{", "{", "(", " ", ",", "^9", "\\["],
)
def test_time_is_linear_in_the_length_of_the_completion(reward, piece):
    # 1 MB takes below half a second; quadratic work on it would take hours
    text = "#### " + piece * (1_000_000 // len(piece))
    start = time.perf_counter()
    reward([text], ["B"])
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("reward", REWARDS)
def test_no_text_raises(reward):
    rng = random.Random(0)
    pieces = ["the ", "\\boxed{", "\\frac", "\\(", "\\)", *"aB1.)($}{^! \n|=\\²"]
    for _ in range(40 if reward is math_reward else 2000):
        text = "#### " + "".join(rng.choice(pieces) for _ in range(rng.randrange(10)))
        assert reward([text], ["B"])[0] in (0.0, 1.0)
