"""Rows of latent training: what they become, how a stage composes them, and which are refused."""

import pytest
import torch
from datasets import Dataset, IterableDataset
from latent_trainers import STEPS, TARGETS

from hf_evidenceflow import LatentSFTConfig
from hf_evidenceflow.tasks.set_tracking import build_set_tokenizer
from hf_evidenceflow.trainers.latent_rows import RowReader, batch_rows, compose, discrete, read_rows


@pytest.fixture
def arguments(tmp_path):
    def arguments(**settings):
        defaults = {"thinking_mode": "soft", "answer_template": "={answer}", "use_cpu": True}
        return LatentSFTConfig(str(tmp_path), **defaults | settings)

    return arguments


@pytest.fixture
def reader(tokenizer, arguments):
    return RowReader(tokenizer, arguments())


def text(tokenizer, ids):
    return tokenizer.decode(ids)


def test_a_row_is_read_as_tokens(reader, tokenizer):
    row = reader(TARGETS[0], 0)
    assert text(tokenizer, row["prompt_ids"]) == "Tom"
    assert text(tokenizer, row["answer_ids"]) == "=c</s>"
    assert [[text(tokenizer, [token]) for token in ids] for ids in row["target_ids"]] == [["a", "b", "d"], ["b"]]
    assert row["target_weights"] == [[0.5, 0.25, 0.25], [1.0]]


def test_weights_are_normalized_and_zero_and_missing_ones_left_out(reader, tokenizer):
    ids, weights = reader._target({"a": 3, "b": None, "c": 0.0, "d": 1}, "here")
    assert (text(tokenizer, ids), weights) == ("ad", [0.75, 0.25])


def test_texts_of_one_token_are_one_target(tokenizer, arguments):
    class Lower:
        eos_token_id, unk_token_id = 1, None

        def __call__(self, text, **kwargs):
            return {"input_ids": [ord(letter) for letter in text.lower()]}

    ids, weights = RowReader(Lower(), arguments())._target({"a": 1.0, "A": 1.0, "b": 2.0}, "here")
    assert (ids, weights) == ([97, 98], [0.5, 0.5])


def test_steps_are_one_hot_targets_where_there_are_none(reader, tokenizer):
    row = reader({"prompt": "x", "answer": "c", "steps": ["d", "e"]}, 0)
    assert text(tokenizer, [ids[0] for ids in row["target_ids"]]) == "de"
    assert row["target_weights"] == [[1.0], [1.0]]


def composed(tokenizer, row, arguments, stage, **settings):
    args = arguments(**settings)
    row = compose(RowReader(tokenizer, args)(row, 0), stage, args, placeholder=5, count=2)
    return text(tokenizer, [t for t in row.head if t != 5]), row.thoughts, text(tokenizer, row.text)


@pytest.mark.parametrize(
    "stage, each, expected",
    [
        (0, 1, ("Ann?", 0, "d\ne\nfgh\n=b</s>")),
        (1, 2, ("Ann?", 2, "e\nfgh\n=b</s>")),
        (3, 1, ("Ann?", 3, "=b</s>")),
        (5, 2, ("Ann?", 10, "=b</s>")),
        (None, 2, ("Ann?", 6, "=b</s>")),
    ],
)
def test_a_stage_replaces_the_first_steps(tokenizer, arguments, stage, each, expected):
    settings = {"objective": "answer", "latent_tokens_per_step": each, "thinking_mode": "coconut"}
    assert composed(tokenizer, STEPS[1], arguments, stage, **settings) == expected


@pytest.mark.parametrize("stage, expected", [(None, (3, "=b</s>")), (1, (1, "e\nfgh\n=b</s>")), (7, (3, "=b</s>"))])
def test_a_stage_of_soft_targets_teaches_the_first_thoughts(tokenizer, arguments, stage, expected):
    """Also where the curriculum is longer than the row."""
    row = TARGETS[1] | {"steps": STEPS[1]["steps"]}
    assert composed(tokenizer, row, arguments, stage)[1:] == expected


def test_a_distilled_row_thinks_a_fixed_number_and_its_teacher_writes(tokenizer, arguments):
    settings = {"objective": "distill", "thinking_mode": "codi", "thinking_count": 2}
    assert composed(tokenizer, STEPS[1], arguments, None, **settings) == ("Ann?", 2, "=b</s>")
    args = arguments(**settings)
    row = RowReader(tokenizer, args)(STEPS[1], 0)
    teacher = discrete(row)
    assert text(tokenizer, teacher.text) == "d\ne\nfgh\n=b</s>"
    student = compose(row, None, args, placeholder=5, count=2)
    for line in (teacher, student):  # the token before the answer
        assert text(tokenizer, line.text[line.answer_at : line.answer_at + 2]) == "=b"


def test_thoughts_of_a_batch_end_together(tokenizer, arguments):
    args = arguments()
    reader = RowReader(tokenizer, args)
    rows = [compose(reader(row, 0), None, args, 5, None) for row in TARGETS]
    batch = batch_rows(rows, pad=0)
    ends = {int(row.nonzero()[-1]) for row in batch["latent_mask"] if row.any()}
    assert len(ends) == 1 and batch["latent_mask"].sum(1).tolist() == [2, 3, 0, 1]
    assert (batch["input_ids"][batch["latent_mask"]] == 5).all()
    assert batch["target_weights"].sum(-1).tolist() == [[0, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 1]]
    for index, row in enumerate(rows):
        real = batch["attention_mask"][index].bool()
        assert batch["input_ids"][index][real].tolist() == row.head + row.text
        assert (batch["labels"][index] != -100).sum() == row.thoughts + len(row.text)


def test_without_thoughts_rows_are_padded_on_the_right(tokenizer, arguments):
    args = arguments(objective="answer", latent_curriculum=[0])
    rows = [compose(RowReader(tokenizer, args)(row, 0), 0, args, 5, None) for row in STEPS]
    batch = batch_rows(rows, pad=0)
    assert "latent_mask" not in batch and batch["attention_mask"][:, 0].all()


def test_rows_that_are_too_long_are_dropped_whole(reader, tokenizer):
    rows = read_rows(TARGETS, reader, 8)
    assert [text(tokenizer, ids) for ids in rows["prompt_ids"]] == ["Tom", "7+2", "x"]


BAD = {
    "no answer": ({"answer": None}, "Row 3 of the data set has no `answer`. Give the text"),
    "an empty answer": ({"answer": ""}, "Row 3 .* has no `answer`"),
    "an empty prompt": ({"prompt": ""}, "Row 3 of the data set has an empty prompt.* Remove the row"),
    "no prompt": ({"prompt": None}, "Row 3 .* neither a text nor a list"),
    "a target of two tokens": (
        {"thought_targets": [{"a": 1.0}, {"ab": 1.0}]},
        r"Row 3 .* thought 2: the target 'ab' must be one token, .* 2 of it: \['a', 'b'\]. Give it another",
    ),
    "a step of two tokens": ({"thought_targets": None, "steps": ["ab"]}, "Row 3 .*'ab' must be one token"),
    "a negative weight": (
        {"thought_targets": [{"a": -1.0, "b": 2.0}]},
        "thought 1: weights .* at least 0, got .*-1.0",
    ),
    "zero weights": (
        {"thought_targets": [{"a": 0.0, "b": 0}]},
        "thought 1: some weight must be positive, got .*Correct",
    ),
    "no weights": ({"thought_targets": [{}]}, "thought 1: some weight must be positive"),
    "weights that are None": ({"thought_targets": [{"a": None}]}, "thought 1: some weight must be positive"),
    "nan": ({"thought_targets": [{"a": float("nan"), "b": 1.0}]}, "thought 1: weights must be finite.*nan"),
    "infinity": ({"thought_targets": [{"a": float("inf")}]}, "thought 1: weights must be finite.*inf"),
    "weights that are texts": ({"thought_targets": [{"a": "0.5"}]}, "thought 1: weights must be finite.*'0.5'"),
    "neither targets nor steps": (
        {"thought_targets": None},
        "Row 3 .* neither `thought_targets` nor `steps`.*thought_targets_from_traces",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_refused_with_its_number(reader, name):
    change, match = BAD[name]
    with pytest.raises(ValueError, match=match):
        read_rows([*TARGETS[:3], TARGETS[3] | change], reader, None)


def test_a_target_that_the_tokenizer_does_not_know_is_refused(arguments):
    reader = RowReader(build_set_tokenizer(), arguments())
    with pytest.raises(ValueError, match="Row 0 .*does not know the target 'c99'.*Take a name"):
        reader({"prompt": "AB:c1,c2\n", "answer": "c1", "thought_targets": [{"c1": 1.0, "c99": 1.0}]}, 0)


def test_an_answer_that_runs_into_its_template_is_refused_for_distill(tokenizer, arguments):
    args = arguments(objective="distill", thinking_count=1, thinking_mode="codi", answer_template="#{answer}")
    with pytest.raises(ValueError, match="Row 0 .*run into those of the answer '#'.*End the template"):
        RowReader(tokenizer, args)({"prompt": "x", "answer": "#", "steps": ["a"]}, 0)


@pytest.mark.parametrize(
    "data",
    [IterableDataset.from_generator(lambda: iter(TARGETS)), iter(TARGETS), None],
    ids=["stream", "iterator", "none"],
)
def test_a_stream_is_refused(reader, data):
    with pytest.raises(
        ValueError, match="takes a `datasets.Dataset` or a list of rows, got .*a stream does not allow"
    ):
        read_rows(data, reader, None)


def test_a_limit_that_leaves_no_row_is_refused(reader):
    with pytest.raises(ValueError, match="No training row is left: all 4 have more than `max_length=2` .*shortest 6"):
        read_rows(TARGETS, reader, 2)


@pytest.mark.parametrize("kind", ["list", "data set"])
def test_structs_that_arrow_fills_are_read_as_the_rows_they_were(reader, kind):
    rows = read_rows(TARGETS if kind == "list" else Dataset.from_list(TARGETS), reader, None)
    weights = [[sorted(zip(*pair)) for pair in zip(row["target_ids"], row["target_weights"])] for row in rows]
    expected = [[sorted(zip(*reader._target(target, ""))) for target in row["thought_targets"]] for row in TARGETS]
    assert weights == expected and torch.is_tensor(torch.tensor(rows[0]["prompt_ids"]))
