"""The set-tracking problems: what the sets are, what is right, what is held out, and that nothing else tells it."""

import itertools
import os
import subprocess
import sys

import pytest

from hf_evidenceflow.tasks import (
    build_set_tokenizer,
    generate_set_problems,
    make_hasty,
    set_runs,
    set_tracking_reward,
    split_set_problems,
)
from hf_evidenceflow.tasks.set_tracking import cup_permutations, held_out_part, possible_cups


SETTINGS = {"cups": 11, "moves": 5, "optional": 3, "operations": 4, "rule_seed": 2}


@pytest.fixture(scope="module")
def problems():
    return generate_set_problems(400, seed=1, **SETTINGS)


@pytest.fixture(scope="module")
def permutations():
    return cup_permutations(SETTINGS["cups"], SETTINGS["operations"], SETTINGS["rule_seed"])


def all_runs(moves, permutations):
    """Every run of a move sequence, each optional move done and left."""
    letters = [move for move in moves if move != "?"]
    marks = [moves[place + 1 : place + 2] == "?" for place, move in enumerate(moves) if move != "?"]
    for done in itertools.product(*[(True, False) if mark else (True,) for mark in marks]):
        cup, run = 0, []
        for letter, does in zip(letters, done):
            cup = permutations["ABCD".index(letter)][cup] if does else cup
            run.append(cup)
        yield run


def test_the_oracle_equals_the_union_of_all_runs(problems, permutations):
    for problem in problems:
        runs = list(all_runs(problem["moves"], permutations))
        assert len(runs) == 2 ** SETTINGS["optional"]
        assert possible_cups(problem["moves"], permutations) == [frozenset(cups) for cups in zip(*runs)]


def test_targets_are_uniform_over_the_set(problems, permutations):
    for problem in problems:
        sets = possible_cups(problem["moves"], permutations)
        for target, cups in zip(problem["thought_targets"], sets, strict=True):
            assert set(target) == {f"c{cup}" for cup in cups}
            assert sum(target.values()) == pytest.approx(1) and len(set(target.values())) == 1


def test_exactly_one_candidate_can_hold_the_ball(problems):
    for problem in problems:
        possible = [cup in problem["thought_targets"][-1] for cup in problem["candidates"]]
        assert sorted(possible) == [False, True]
        assert problem["answer"] == problem["candidates"][possible[1]]
        assert problem["question"].partition(":")[2] == ",".join(problem["candidates"])


def test_the_steps_are_a_run_that_ends_in_the_answer(problems, permutations):
    for problem in problems:
        runs = [[f"c{cup}" for cup in run] for run in all_runs(problem["moves"], permutations)]
        assert problem["steps"] in runs and problem["steps"][-1] == problem["answer"]


def test_drawn_runs_are_legal_and_differ(problems, permutations):
    ends = set()
    for problem in problems[:50]:
        runs = [[f"c{cup}" for cup in run] for run in all_runs(problem["moves"], permutations)]
        drawn = set_runs(problem, 6, seed=3)
        assert all(run in runs for run in drawn)
        assert drawn == set_runs(problem, 6, seed=3)
        ends |= {run[-1] == problem["answer"] for run in drawn}
    assert ends == {True, False}


def test_enough_drawn_runs_cover_the_set(problems):
    runs = set_runs(problems[0], 200)
    assert [set(cups) for cups in zip(*runs)] == [set(target) for target in problems[0]["thought_targets"]]


def test_place_and_number_do_not_tell_the_answer():
    problems = generate_set_problems(2000, seed=4)
    first = sum(problem["answer"] == problem["candidates"][0] for problem in problems)
    smaller = sum(row["answer"] == min(row["candidates"], key=lambda cup: int(cup[1:])) for row in problems)
    # Four standard errors of a fair coin over 2,000 problems are 0.045
    assert abs(first / 2000 - 0.5) < 0.045 and abs(smaller / 2000 - 0.5) < 0.045


@pytest.mark.parametrize("rule_seed", range(5))
@pytest.mark.parametrize(("cups", "operations"), [(12, 4), (4, 3)])  # of few cups many commute
def test_permutations_neither_commute_nor_stand_still(cups, operations, rule_seed):
    permutations = cup_permutations(cups, operations, rule_seed)
    assert all(sorted(permutation) == list(range(cups)) for permutation in permutations)
    assert tuple(range(cups)) not in permutations
    for first, second in itertools.combinations(permutations, 2):
        assert [first[cup] for cup in second] != [second[cup] for cup in first]


def test_rules_differ_by_their_seed():
    assert len({cup_permutations(12, 4, rule_seed) for rule_seed in range(5)}) == 5


def test_the_same_seed_gives_the_same_problems_and_the_first_of_more():
    assert generate_set_problems(7, seed=5) == generate_set_problems(13, seed=5)[:7]
    assert generate_set_problems(7, seed=5) != generate_set_problems(7, seed=6)


def test_splits_share_no_move_sequence_and_ask_no_question_twice():
    splits = split_set_problems(train=300, test=80, validation=50, **SETTINGS)
    assert {part: len(rows) for part, rows in splits.items()} == {"train": 300, "test": 80, "validation": 50}
    sequences = {part: {row["moves"] for row in rows} for part, rows in splits.items()}
    assert not any(one & other for one, other in itertools.combinations(sequences.values(), 2))
    questions = [row["question"] for rows in splits.values() for row in rows]
    assert len(set(questions)) == len(questions)


def test_a_tenth_of_the_sequences_is_held_out():
    sequences = {row["moves"] for row in generate_set_problems(3000, seed=7)}
    parts = [held_out_part(sequence) for sequence in sequences]
    # Four standard errors of a share of .1 over 3,000 are 0.022
    assert abs(parts.count("train") / len(parts) - 0.9) < 0.022
    assert parts.count("test") and parts.count("validation")


def test_a_split_does_not_depend_on_the_size_of_the_others():
    small, large = split_set_problems(3, 7, 2, **SETTINGS), split_set_problems(11, 7, 5, **SETTINGS)
    assert small["test"] == large["test"] and small["train"] == large["train"][:3]


@pytest.mark.slow
def test_what_is_held_out_is_the_same_in_every_process():
    # By this name the package registers no models, which takes seconds
    code = "import sys; sys.argv[0] = 'hf-evidenceflow'; from hf_evidenceflow.tasks import split_set_problems as s; "
    code += "print([row['moves'] for row in s(2, 3, 2)['test']])"
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    other = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
    )
    assert other.stdout == f"{[row['moves'] for row in split_set_problems(2, 3, 2)['test']]}\n"


def test_hasty_rows_follow_their_run_or_guess(problems, permutations):
    right = 0
    for problem, hasty in zip(problems, make_hasty(problems, share=1.0, seed=2)):
        runs = [[f"c{cup}" for cup in run] for run in all_runs(problem["moves"], permutations)]
        assert hasty["steps"] in runs and hasty["answer"] in problem["candidates"]
        assert hasty["steps"][-1] not in problem["candidates"] or hasty["answer"] == hasty["steps"][-1]
        right += hasty["answer"] == problem["answer"]
    assert 0.5 < right / len(problems) < 0.9


def test_no_share_spoils_no_row(problems):
    assert make_hasty(problems[:9], share=0.0) == problems[:9]


@pytest.mark.parametrize("words", [False, True])
def test_the_reward_reads_the_completion_of_a_row(words):
    row = generate_set_problems(1, seed=3, words=words, **SETTINGS)[0]
    completion = "".join(row["steps"]) + f"#### {row['answer']}"
    wrong = next(cup for cup in row["candidates"] if cup != row["answer"])
    completions = [completion, f"####{row['answer']}", f"#### {wrong}", row["answer"], f"{completion} {wrong}"]
    assert set_tracking_reward(completions, [row["answer"]] * 5) == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_a_gold_that_is_no_name_is_refused():
    with pytest.raises(ValueError, match="one word"):
        set_tracking_reward(["#### c1"], ["c1 or c2"])


@pytest.mark.parametrize("words", [False, True])
def test_names_moves_and_marker_are_one_token_and_decode_to_their_text(words):
    tokenizer = build_set_tokenizer(SETTINGS["cups"], SETTINGS["operations"], words)
    for row in generate_set_problems(20, words=words, **SETTINGS):
        pieces = [*row["steps"], *itertools.chain(*row["thought_targets"]), "####"]
        assert all(len(tokenizer(piece)["input_ids"]) == 1 for piece in pieces)
        text = row["prompt"] + "".join(row["steps"]) + f"#### {row['answer']}"
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == text
        assert ids[: len(tokenizer(row["prompt"])["input_ids"])] == tokenizer(row["prompt"])["input_ids"]


def test_a_compact_prompt_has_one_token_a_move():
    row = generate_set_problems(1, **SETTINGS)[0]
    assert len(build_set_tokenizer(11)(row["prompt"])["input_ids"]) == SETTINGS["moves"] + len(":c,c\n")


def test_words_change_the_text_and_nothing_else():
    plain, words = (generate_set_problems(9, seed=8, words=words, **SETTINGS) for words in (False, True))
    names = dict(zip(plain[0]["thought_targets"][-1], words[0]["thought_targets"][-1]))
    assert all(name.startswith(" ") for name in names.values())
    for one, other in zip(plain, words):
        assert one["moves"] == other["moves"] and one["moves"].count("?") == other["question"].count("Maybe do")
        assert list(map(len, one["thought_targets"])) == list(map(len, other["thought_targets"]))
        assert one["candidates"].index(one["answer"]) == other["candidates"].index(other["answer"])


@pytest.mark.parametrize(
    ("setting", "value", "bound"),
    [
        ("n", -1, "least 0"),
        ("cups", 2, "least 3"),
        ("moves", 0, "least 1"),
        ("optional", -1, "least 0"),
        ("optional", 6, "most 5"),
        ("operations", 1, "least 2"),
        ("operations", 27, "most 26"),
    ],
)
def test_settings_out_of_range_are_named(setting, value, bound):
    with pytest.raises(ValueError, match=f"`{setting}` must be at {bound}, got {value}"):
        generate_set_problems(**{"n": 1} | SETTINGS | {setting: value})


def test_more_cups_than_words_are_refused():
    with pytest.raises(ValueError, match="`cups` must be at most 32"):
        generate_set_problems(1, cups=33, words=True)


def test_permutations_that_must_commute_are_refused():
    with pytest.raises(ValueError, match="No 5 permutations of 3 cups"):
        cup_permutations(3, 5)


def test_too_many_problems_are_refused():
    with pytest.raises(ValueError, match="different problems were found"):
        generate_set_problems(1000, cups=3, moves=1, optional=0, operations=2)
