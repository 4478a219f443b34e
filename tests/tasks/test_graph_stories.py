"""The graph stories: what is told, what is right, and what the sets at each depth are."""

import itertools

import pytest

from hf_evidenceflow.tasks import (
    build_story_tokenizer,
    generate_graph_stories,
    make_wandering,
    split_graph_stories,
    story_reward,
)
from hf_evidenceflow.tasks.graph_reachability import shortest_path
from hf_evidenceflow.tasks.graph_stories import frontiers, read_story


SETTINGS = {"nodes": 7, "extra_edges": 4, "depth": 3}


@pytest.fixture(scope="module")
def stories():
    return generate_graph_stories(400, seed=1, **SETTINGS)


def test_only_the_right_noun_can_be_reached(stories):
    for story in stories:
        edges, root, candidates = read_story(story["question"])
        (wrong,) = set(candidates) - {story["answer"]}
        assert len(shortest_path(edges, root, story["answer"])) == SETTINGS["depth"]
        assert shortest_path(edges, root, wrong) is None


def test_targets_are_uniform_over_the_nodes_at_each_distance(stories):
    for story in stories:
        edges, root, _ = read_story(story["question"])
        nodes = {node for edge in edges for node in edge}
        paths = {node: shortest_path(edges, root, node) for node in nodes}
        for depth, target in enumerate(story["thought_targets"], start=1):
            assert set(target) == {f" {node}" for node, path in paths.items() if path and len(path) == depth}
            assert sum(target.values()) == pytest.approx(1) and len(set(target.values())) == 1
        assert depth == SETTINGS["depth"]


def test_a_node_reached_before_is_in_no_later_set():
    assert frontiers([("a", "b"), ("b", "c"), ("a", "c")], "a", 2) == [{"b", "c"}, set()]


def test_most_last_sets_hold_more_than_one_noun(stories):
    widths = [max(map(len, story["thought_targets"])) for story in stories]
    assert sum(width > 1 for width in widths) > 0.7 * len(stories)


def test_the_steps_are_a_path_from_the_root_to_the_answer(stories):
    for story in stories:
        edges, root, _ = read_story(story["question"])
        nodes = [root, *(step.strip() for step in story["steps"])]
        assert nodes[-1] == story["answer"] and set(itertools.pairwise(nodes)) <= set(edges)


def test_sentences_tell_the_same_path_in_the_words_of_the_story(stories):
    told = generate_graph_stories(20, seed=1, sentences=True, **SETTINGS)
    for story, sentences in zip(stories, told):
        assert story["question"] == sentences["question"]
        assert [step.split()[-1].rstrip(".") for step in sentences["steps"]] == [
            step.strip() for step in story["steps"]
        ]
        assert all(step.strip() in story["question"] for step in sentences["steps"])


def test_place_and_degree_do_not_tell_the_answer(stories):
    hits = {"first": 0.0, "degree": 0.0}
    for story in stories:
        edges, _, candidates = read_story(story["question"])
        (wrong,) = set(candidates) - {story["answer"]}
        hits["first"] += candidates[0] == story["answer"]
        right_degree, wrong_degree = (sum(node in edge for edge in edges) for node in (story["answer"], wrong))
        hits["degree"] += 0.5 if right_degree == wrong_degree else right_degree > wrong_degree
    # Four standard errors of a fair coin over 400 stories are 0.1
    assert all(abs(count / len(stories) - 0.5) < 0.1 for count in hits.values()), hits


def test_splits_share_no_question_and_the_test_stays_the_same():
    small, large = split_graph_stories(3, 7, 2, **SETTINGS), split_graph_stories(11, 7, 5, **SETTINGS)
    assert {part: len(rows) for part, rows in large.items()} == {"train": 11, "test": 7, "validation": 5}
    questions = [row["question"] for rows in large.values() for row in rows]
    assert len(set(questions)) == len(questions) and small["test"] == large["test"]


def test_the_same_seed_gives_the_same_stories():
    assert generate_graph_stories(3, seed=5) == generate_graph_stories(4, seed=5)[:3]


@pytest.mark.parametrize("sentences", [False, True])
def test_wandering_rows_follow_edges_and_name_a_candidate(sentences):
    stories = generate_graph_stories(200, seed=3, sentences=sentences, **SETTINGS)
    wrong = 0
    for story, row in zip(stories, make_wandering(stories, share=1.0, seed=2)):
        edges, root, candidates = read_story(story["question"])
        nodes = [root, *(step.strip().rstrip(".").split()[-1] for step in row["steps"])]
        assert set(itertools.pairwise(nodes)) <= set(edges) and row["answer"] in candidates
        wrong += row["answer"] != story["answer"]
    assert 0.1 < wrong / len(stories) < 0.6


def test_the_reward_reads_the_completion_of_a_row(stories):
    row = stories[0]
    completion = "".join(row["steps"]) + f"#### {row['answer']}"
    assert story_reward([completion, f"#### {row['answer']}x"], [row["answer"]] * 2) == [1.0, 0.0]


def test_nouns_and_marker_are_one_token_and_decode_to_their_text(stories):
    tokenizer = build_story_tokenizer()
    for row in [*stories[:20], *generate_graph_stories(5, sentences=True)]:
        pieces = [*itertools.chain(*row["thought_targets"]), "####"]
        assert all(len(tokenizer(piece)["input_ids"]) == 1 for piece in pieces)
        text = row["prompt"] + "".join(row["steps"]) + f"#### {row['answer']}"
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == text


def test_other_nouns_can_name_the_nodes():
    (row,) = generate_graph_stories(1, nodes=3, depth=1, nouns=("cat", "dog", "fox", "lion", "bear", "wolf"))
    assert row["answer"] in ("cat", "dog", "fox", "lion", "bear", "wolf")


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("depth", 0, "`depth` must be at least 1"),
        ("nodes", 3, "`nodes` must be at least 4"),
        ("nouns", ("cat", "dog"), "`nouns` must hold at least 14"),
        ("nouns", ("owl",), "must be lower-case words that follow `a`, got 'owl'"),
    ],
)
def test_settings_out_of_range_are_named(setting, value, message):
    with pytest.raises(ValueError, match=message):
        generate_graph_stories(1, **SETTINGS | {setting: value})
