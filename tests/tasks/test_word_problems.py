import re

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from hf_evidenceflow.models.thinking.answer_marker import marker_table
from hf_evidenceflow.tasks import (
    TEMPLATES,
    build_word_problem_tokenizer,
    generate_word_problems,
    grade,
    make_sloppy,
    prepare_gsm8k,
    split_word_problems,
)


ALL_OPERATIONS = ("add", "subtract", "multiply")
STEP = re.compile(r"(\d+)([+*-])(\d+)=(\d+)")


@pytest.fixture(scope="module")
def problems():
    return generate_word_problems(300, seed=3, operations=ALL_OPERATIONS, max_number=23, steps=3)


@pytest.fixture(scope="module")
def word_tokenizer():
    return build_word_problem_tokenizer()


def calculate(left, operation, right):
    return {"+": left + right, "-": left - right, "*": left * right}[operation]


def test_each_step_of_a_solution_is_right_and_continues_the_one_before(problems):
    for problem in problems:
        *lines, last = problem["answer"].split("\n")
        steps = [STEP.fullmatch(line).groups() for line in lines]
        assert all(calculate(int(a), op, int(b)) == int(c) for a, op, b, c in steps)
        assert [after[0] for after in steps[1:]] + [last.removeprefix("#### ")] == [step[3] for step in steps]


def test_numbers_of_the_question_are_those_of_the_solution_in_order(problems):
    for problem in problems:
        steps = [STEP.fullmatch(line) for line in problem["answer"].split("\n")[:-1]]
        assert re.findall(r"\d+", problem["question"]) == [steps[0][1], *(step[3] for step in steps)]


def test_numbers_stay_in_their_range():
    for problem in generate_word_problems(300, seed=1, max_number=6):
        numbers = [int(number) for number in re.findall(r"\d+", problem["question"])]
        assert max(numbers) <= 6 and min(numbers) >= 1 and "=-" not in problem["answer"]


def test_same_seed_gives_the_same_problems_and_another_seed_others():
    first, same, other = (generate_word_problems(20, seed=seed) for seed in (5, 5, 6))
    assert first == same != other


def test_shorter_list_is_the_beginning_of_a_longer_one():
    assert generate_word_problems(7, seed=2) == generate_word_problems(30, seed=2)[:7]


def test_questions_are_all_different(problems):
    assert len({problem["question"] for problem in problems}) == len(problems)


def test_settings_choose_templates_and_operations():
    rows = generate_word_problems(50, templates=TEMPLATES[1:2], operations=("subtract",), max_number=9)
    assert all("basket" in row["question"] and "+" not in row["answer"] for row in rows)


def test_every_template_appears():
    questions = " ".join(row["question"] for row in generate_word_problems(200))
    assert all(template.question.split("{objects}")[1].split("{name}")[-1] in questions for template in TEMPLATES)


def test_train_and_test_have_no_question_in_common():
    splits = split_word_problems(200, 50, seed=1)
    assert (len(splits["train"]), len(splits["test"])) == (200, 50)
    assert {row["question"] for row in splits["train"]}.isdisjoint(row["question"] for row in splits["test"])


def test_test_problems_do_not_depend_on_the_number_of_training_problems():
    assert split_word_problems(10, 5, seed=1)["test"] == split_word_problems(40, 5, seed=1)["test"]


def test_problems_are_in_the_format_of_gsm8k(problems):
    dataset = prepare_gsm8k(Dataset.from_list(problems), conversational=False, system_prompt=None)
    assert dataset[0]["prompt"] == problems[0]["question"] + "\n"
    assert all(grade(row["solution"], row["answer"]) == 1.0 for row in dataset)


def test_sloppy_solution_leaves_out_the_last_step_and_is_always_wrong(problems):
    for problem, sloppy in zip(problems, make_sloppy(problems, share=1.0)):
        lines = problem["answer"].split("\n")
        assert sloppy["answer"].split("\n")[:-1] == lines[:-2]
        assert sloppy["answer"].endswith(f"#### {lines[-3].split('=')[1]}")
        assert grade(sloppy["answer"], problem["answer"]) == 0.0


def test_sloppy_share_is_kept(problems):
    changed = sum(a != b for a, b in zip(problems, make_sloppy(problems, share=0.6, seed=0)))
    assert 0.5 < changed / len(problems) < 0.7  # 300 draws: the standard error is 0.03


def test_sloppy_share_of_0_changes_nothing(problems):
    assert make_sloppy(problems, share=0.0) == problems


def test_making_sloppy_leaves_the_given_rows_as_they_are():
    rows = generate_word_problems(5)
    before = [dict(row) for row in rows]
    make_sloppy(rows, share=1.0)
    assert rows == before


def test_sloppy_solution_of_a_single_step_is_an_error():
    with pytest.raises(ValueError, match="single step"):
        make_sloppy(generate_word_problems(1, steps=1), share=1.0)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_sloppy_share_that_is_no_probability_is_an_error(share):
    with pytest.raises(ValueError, match=r"`share` must be in \[0, 1\]"):
        make_sloppy([], share=share)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": -1}, "`n` must be at least 0, got -1"),
        ({"max_number": 0}, "`max_number` must be at least 1, got 0"),
        ({"steps": 0}, "`steps` must be at least 1, got 0"),
        ({"templates": ()}, "at least one template"),
        ({"operations": ()}, "`operations` must be some of"),
        ({"operations": ("divide",)}, "add, subtract, multiply, got"),
        ({"operations": ("multiply",), "max_number": 1}, "at least 2 to multiply"),
        ({"n": 10**4, "max_number": 1, "steps": 1}, "Ask for fewer"),
        ({"operations": ("subtract",), "max_number": 1}, "Only 0 of 1 different problems"),
    ],
)
def test_settings_out_of_range_are_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        generate_word_problems(**{"n": 1, **settings})


def test_tokenizer_knows_every_word_and_gives_the_text_back(problems, word_tokenizer):
    for problem in problems:
        text = f"{problem['question']}\n{problem['answer']}"
        ids = word_tokenizer(text)["input_ids"]
        assert word_tokenizer.unk_token_id not in ids and word_tokenizer.decode(ids) == text


def test_each_digit_is_the_same_single_token_everywhere(word_tokenizer):
    ids = word_tokenizer("5 55 5+5=#### 5\n5")["input_ids"]
    assert [word_tokenizer.decode(index) for index in ids].count("5") == 7 == ids.count(ids[0])


def test_marker_is_two_tokens_without_space(word_tokenizer):
    ids = word_tokenizer("####")["input_ids"]
    assert len(ids) == 2 and word_tokenizer.decode(ids) == "####"


def test_marker_automaton_finds_the_marker_of_a_solution(word_tokenizer):
    table = marker_table(word_tokenizer, "####")
    states = [0]
    for index in word_tokenizer("3+4=7\n#### 7")["input_ids"]:
        states.append(int(table[states[-1], index]))
    assert states == [0] * 7 + [2, 4, 4, 4]


def test_special_tokens_are_different_and_not_added_to_texts(word_tokenizer):
    special = {word_tokenizer.pad_token_id, word_tokenizer.eos_token_id, word_tokenizer.unk_token_id}
    assert len(special) == 3 and special.isdisjoint(word_tokenizer("Ann has 5 apples.")["input_ids"])


def test_unknown_words_become_the_unknown_token(word_tokenizer):
    assert word_tokenizer("xylophone")["input_ids"] == [word_tokenizer.unk_token_id]


def test_saved_tokenizer_is_the_same(problems, word_tokenizer, tmp_path):
    word_tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = problems[0]["question"] + "\n" + problems[0]["answer"]
    ids = loaded(text)["input_ids"]
    assert ids == word_tokenizer(text)["input_ids"] and loaded.decode(ids) == text
    assert (loaded.pad_token, loaded.eos_token, loaded.padding_side) == ("<pad>", "<eos>", "left")


def test_words_have_their_ids_by_the_alphabet_and_so_the_same_in_each_process(word_tokenizer):
    words = [word for word in word_tokenizer.get_vocab() if word.isalpha() and not word.startswith(("Ġ", "Ċ"))]
    assert words and sorted(words) == sorted(words, key=word_tokenizer.convert_tokens_to_ids)


def test_solutions_of_two_steps_are_short(word_tokenizer):
    lengths = [len(word_tokenizer(row["answer"])["input_ids"]) for row in generate_word_problems(500, seed=4)]
    assert max(lengths) + 1 <= 28  # with the end token; the demonstration generates 28 new tokens
