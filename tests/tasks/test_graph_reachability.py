"""The generated search problems: what is asked, what is right, and that nothing but the edges tells it."""

import itertools

import pytest

from hf_evidenceflow.tasks import (
    build_graph_tokenizer,
    generate_graph_problems,
    grade,
    make_careless,
    prepare_gsm8k,
    split_graph_problems,
)
from hf_evidenceflow.tasks.graph_reachability import read_graph_question, shortest_path


SETTINGS = {"nodes": 5, "extra_edges": 2, "depth": 2, "names": 13}


@pytest.fixture(scope="module")
def problems():
    return generate_graph_problems(600, seed=1, **SETTINGS)


def right_and_wrong(problem):
    edges, root, candidates = read_graph_question(problem["question"])
    right = int(problem["answer"].rpartition("#### ")[2])
    return edges, root, right, candidates[candidates[0] == right]


def test_only_the_right_candidate_can_be_reached_at_the_asked_depth(problems):
    for problem in problems:
        edges, root, right, wrong = right_and_wrong(problem)
        assert len(shortest_path(edges, root, right)) == SETTINGS["depth"]
        assert shortest_path(edges, root, wrong) is None


def test_the_solution_is_a_path_of_edges_from_the_root_to_the_answer(problems):
    for problem in problems:
        edges, root, right, _ = right_and_wrong(problem)
        steps = [tuple(map(int, line.split(">"))) for line in problem["answer"].split("\n")[:-1]]
        assert steps[0][0] == root and steps[-1][1] == right
        assert all(first[1] == second[0] for first, second in itertools.pairwise(steps))
        assert set(steps) <= set(edges)


def test_place_name_and_degrees_do_not_tell_the_answer(problems):
    hits = {"first": 0, "smaller": 0, "out": 0, "into": 0}
    for problem in problems:
        edges, _, right, wrong = right_and_wrong(problem)
        _, _, candidates = read_graph_question(problem["question"])
        hits["first"] += candidates[0] == right
        hits["smaller"] += right < wrong
        for key, end in (("out", 0), ("into", 1)):
            degrees = [sum(edge[end] == node for edge in edges) for node in (right, wrong)]
            hits[key] += 0.5 if degrees[0] == degrees[1] else degrees[0] > degrees[1]
    # Four standard errors of a fair coin over 600 problems are 0.08
    assert all(abs(count / len(problems) - 0.5) < 0.08 for count in hits.values()), hits


def test_splits_share_no_question():
    splits = split_graph_problems(train=150, test=50, **SETTINGS)
    questions = {name: {row["question"] for row in rows} for name, rows in splits.items()}
    assert (len(questions["train"]), len(questions["test"])) == (150, 50)
    assert not questions["train"] & questions["test"]


def test_test_problems_do_not_depend_on_the_number_for_training():
    assert split_graph_problems(3, 7, **SETTINGS)["test"] == split_graph_problems(11, 7, **SETTINGS)["test"]


def test_careless_walks_follow_edges_and_name_a_candidate(problems):
    for problem in make_careless(problems[:100], share=1.0, seed=2):
        edges, root, candidates = read_graph_question(problem["question"])
        *lines, answer = problem["answer"].split("\n")
        steps = [tuple(map(int, line.split(">"))) for line in lines]
        assert steps[0][0] == root and set(steps) <= set(edges)
        assert int(answer.removeprefix("#### ")) in candidates


def test_careless_walks_are_often_wrong(problems):
    careless = make_careless(problems, share=1.0, seed=2)
    wrong = sum(a["answer"].split()[-1] != b["answer"].split()[-1] for a, b in zip(careless, problems))
    assert 0.1 < wrong / len(problems) < 0.6


def test_the_grader_reads_the_prepared_rows(problems):
    from datasets import Dataset

    rows = prepare_gsm8k(Dataset.from_list(problems[:10]), conversational=False, system_prompt=None)
    assert [grade(row["solution"], row["answer"]) for row in rows] == [1.0] * 10


def test_the_tokenizer_gives_back_the_text_without_unknown_tokens(problems):
    tokenizer = build_graph_tokenizer(SETTINGS["names"])
    for problem in problems[:20]:
        text = problem["question"] + "\n" + problem["answer"]
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text and tokenizer.unk_token_id not in ids


@pytest.mark.parametrize(("setting", "value"), [("depth", 0), ("nodes", 2), ("extra_edges", -1), ("names", 9)])
def test_settings_out_of_range_are_named(setting, value):
    with pytest.raises(ValueError, match=f"`{setting}` must be at least"):
        generate_graph_problems(1, **SETTINGS | {setting: value})


def test_too_many_problems_are_refused():
    with pytest.raises(ValueError, match="different problems were found"):
        generate_graph_problems(10_000, nodes=2, extra_edges=0, depth=1, names=4)
