"""Span corruption and the way back, the collator, the sentinels, gaps and their filling, and the recipe."""

import importlib.util
import itertools
import json
from collections import Counter

import numpy as np
import pytest
import torch
from repository import RECIPES
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from hf_evidenceflow.recipes.course.seq2seq_pretraining.attention_masks import (
    causal_model_states,
    influence,
    plot_masks,
    prefix_mask,
)
from hf_evidenceflow.recipes.course.seq2seq_pretraining.gap_filling import (
    Gap,
    draw_gaps,
    fill_from_both_sides,
    fill_from_the_left,
    share_of_exact_spans,
)
from hf_evidenceflow.recipes.course.seq2seq_pretraining.gap_likelihood import nats_from_both_sides, nats_from_the_left
from hf_evidenceflow.recipes.course.seq2seq_pretraining.sentinel_tokenizer import (
    sentinel_ids,
    train_sentinel_tokenizer,
)
from hf_evidenceflow.recipes.course.seq2seq_pretraining.span_collator import SpanCorruptionCollator
from hf_evidenceflow.recipes.course.seq2seq_pretraining.span_corruption import (
    corrupt,
    count_noise,
    random_segments,
    random_spans_mask,
    raw_length,
    restore,
    split_spans,
)


RECIPE = RECIPES / "course" / "seq2seq_pretraining" / "run.py"
PAD, EOS, SENTINELS = 1, 2, list(range(90, 60, -1))  # in falling order, as T5's own


def generator(seed):
    return torch.Generator().manual_seed(seed)


def span_lengths(mask):
    return [len(list(group)) for masked, group in itertools.groupby(mask.tolist()) if masked]


# Corruption


def test_the_example_of_the_module_comes_out():
    a, b, c, d, e, f, g = range(10, 17)
    x0, x1 = SENTINELS[:2]
    inputs, targets = corrupt([a, b, c, d, e, f, g], [0, 0, 1, 1, 0, 0, 1], SENTINELS, EOS)
    assert inputs == [a, b, x0, e, f, x1, EOS]
    assert targets == [x0, c, d, x1, g, EOS]


@pytest.mark.parametrize("density, mean", [(0.15, 3.0), (0.5, 1.0), (0.3, 2.5), (0.9, 4.0), (0.02, 3.0)])
def test_every_row_comes_back_exactly(density, mean):
    for seed, length in enumerate([2, 3, 5, 7, 11, 30, 57]):
        row = torch.randint(3, 60, (length,), generator=generator(seed)).tolist()
        mask = random_spans_mask(length, density, mean, generator(seed))
        inputs, targets = corrupt(row, mask, SENTINELS, EOS)
        assert restore(inputs, targets, SENTINELS, EOS) == row, (length, seed)


def test_a_row_may_hold_the_token_that_ends_documents():
    row = [5, 0, 7, 0, 0, 9]
    inputs, targets = corrupt(row, [0, 1, 1, 0, 1, 1], SENTINELS, EOS)
    assert restore(inputs, targets, SENTINELS, EOS) == row


def test_sentinels_are_used_once_in_order_and_on_both_sides():
    row, mask = list(range(3, 60)), random_spans_mask(57, 0.4, 2.0, generator(0))
    inputs, targets = corrupt(row, mask, SENTINELS, EOS)
    spans = len(span_lengths(mask))
    assert spans > 5
    for tokens in (inputs, targets):
        assert [token for token in tokens if token in SENTINELS] == SENTINELS[:spans]
    assert len(inputs) + len(targets) == len(row) + 2 * spans + 2


def test_two_spans_never_touch_and_the_first_token_is_kept_as_in_the_papers_code():
    for seed in range(50):
        mask = random_spans_mask(41, 0.4, 3.0, generator(seed))
        assert not mask[0] and mask[-1]
        assert len(span_lengths(mask)) == count_noise(41, 0.4, 3.0)[1]  # two that touch would count as one


def test_the_share_of_noise_and_the_mean_span_are_those_asked_for():
    masks = [random_spans_mask(200, 0.15, 3.0, generator(seed)) for seed in range(40)]
    lengths = [length for mask in masks for length in span_lengths(mask)]
    assert {int(mask.sum()) for mask in masks} == {30}
    assert np.mean(lengths) == pytest.approx(3.0)
    # A composition of 30 in 10 parts: a part is 1 with chance 9/29
    assert np.mean([length == 1 for length in lengths]) == pytest.approx(9 / 29, abs=0.07)


def test_every_position_but_the_first_is_masked_about_equally_often():
    masks = torch.stack([random_spans_mask(20, 0.3, 2.0, generator(seed)) for seed in range(600)]).float()
    share = masks.mean(0)
    assert share[0] == 0 and share[1:-1].min() > 0.1 and share[-1] == 1


def test_each_way_of_cutting_is_equally_likely():
    source = generator(0)
    counts = Counter(tuple(random_segments(6, 3, source).tolist()) for _ in range(2000))
    # 10 ways to write 6 as an ordered sum of three; 200 each with a standard deviation of 13
    assert len(counts) == 10 and all(sum(cut) == 6 and min(cut) > 0 for cut in counts)
    assert max(abs(count - 200) for count in counts.values()) < 5 * 13.4


@pytest.mark.parametrize("length, density, mean, expected", [(2, 0.01, 3, (1, 1)), (5, 0.99, 1, (4, 1))])
def test_short_rows_keep_a_token_and_mask_one(length, density, mean, expected):
    assert count_noise(length, density, mean) == expected


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((1,), "got 1"),
        ((9, 0.0), "noise_density.*0.0"),
        ((9, 1.0), "noise_density.*1.0"),
        ((9, 0.2, 0.5), "mean_span_length.*0.5"),
    ],
)
def test_values_out_of_range_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        random_spans_mask(*arguments)


def test_too_few_sentinels_a_short_mask_and_a_sentinel_in_the_row_are_refused():
    with pytest.raises(ValueError, match="3 masked spans, but there are 2 sentinels"):
        corrupt([5, 6, 7, 8, 9, 10], [0, 1, 0, 1, 0, 1], SENTINELS[:2], EOS)
    with pytest.raises(ValueError, match="each of 3 tokens, got 2"):
        corrupt([5, 6, 7], [0, 1], SENTINELS, EOS)
    with pytest.raises(ValueError, match=f"sentinel {SENTINELS[3]}"):
        corrupt([5, SENTINELS[3], 7], [0, 0, 1], SENTINELS, EOS)


def test_a_target_that_does_not_belong_to_the_input_is_refused():
    inputs, targets = corrupt([5, 6, 7, 8], [0, 1, 0, 1], SENTINELS, EOS)
    with pytest.raises(ValueError, match="the targets have"):
        restore(inputs, [SENTINELS[0], 6, EOS], SENTINELS, EOS)
    with pytest.raises(ValueError, match="Cut the padding off"):
        restore([*inputs, PAD], targets, SENTINELS, EOS)


def test_what_a_model_generated_is_read_up_to_its_end():
    x0, x1 = SENTINELS[:2]
    assert split_spans([PAD, 8, x0, 5, 6, x1, x0, 9, EOS, 7], SENTINELS, EOS) == {x0: [5, 6], x1: []}


@pytest.mark.parametrize("density, mean", [(0.15, 3.0), (0.4, 1.5)])
def test_rows_of_the_raw_length_give_inputs_and_targets_of_exactly_the_wanted_lengths(density, mean):
    for wanted in (7, 23, 64):
        raw, target_length = raw_length(wanted, density, mean)
        mask = random_spans_mask(raw, density, mean, generator(wanted))
        inputs, targets = corrupt([5] * raw, mask, SENTINELS, EOS)
        assert (len(inputs), len(targets)) == (wanted, target_length)
        longer, _ = corrupt([5] * (raw + 1), random_spans_mask(raw + 1, density, mean), SENTINELS, EOS)
        assert len(longer) > wanted


def test_the_lengths_are_those_that_t5_was_trained_with():
    assert raw_length(512) == (568, 114)
    with pytest.raises(ValueError, match="at least 3, got 2"):
        raw_length(2)


# Collator and tokenizer


def rows_of(*lengths):
    return [{"input_ids": torch.arange(3, 3 + length), "labels": torch.zeros(length)} for length in lengths]


def test_a_batch_is_padded_so_that_each_row_can_be_restored():
    batch = SpanCorruptionCollator(SENTINELS, EOS, PAD, seed=3)(rows_of(7, 40, 23))
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    for ids, mask, labels, length in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], (7, 40, 23)):
        assert (ids[mask == 0] == PAD).all() and (mask.diff() <= 0).all()
        targets = labels[labels != -100]
        assert (labels[len(targets) :] == -100).all()
        restored = restore(ids[mask == 1].tolist(), targets.tolist(), SENTINELS, EOS)
        assert restored == list(range(3, 3 + length))
    assert (batch["labels"] == -100).any() and (batch["attention_mask"] == 0).any()


def test_the_same_seed_gives_the_same_batches_whatever_else_draws():
    first, again, other = (SpanCorruptionCollator(SENTINELS, EOS, PAD, seed=seed) for seed in (5, 5, 6))
    expected = [first(rows_of(40, 41))["labels"].tolist() for _ in range(2)]
    torch.manual_seed(99)
    assert [again(rows_of(40, 41))["labels"].tolist() for _ in range(2)] == expected
    assert expected[0] != expected[1]  # the rows are corrupted anew
    assert other(rows_of(40, 41))["labels"].tolist() != expected[0]


def test_padding_changes_no_loss_and_the_decoder_is_fed_the_shifted_labels():
    torch.manual_seed(0)
    sizes = {"vocab_size": 91, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2}
    special = {"pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": PAD}
    model = T5ForConditionalGeneration(T5Config(**sizes, **special, dropout_rate=0.0)).eval()
    batch = SpanCorruptionCollator(SENTINELS, EOS, PAD)(rows_of(7, 40))
    with torch.no_grad():
        logits = model(**batch).logits[0]
        ids = batch["input_ids"][:1, : int(batch["attention_mask"][0].sum())]
        target = batch["labels"][0][batch["labels"][0] != -100]
        start = torch.cat([torch.tensor([PAD]), target[:-1]])[None]
        alone = model(input_ids=ids, decoder_input_ids=start).logits[0]
    torch.testing.assert_close(logits[: len(target)], alone, atol=1e-5, rtol=1e-5)


def test_ids_that_are_used_twice_are_refused():
    for arguments in (([], 2, 1), ([7, 7], 2, 1), ([7, 2], 2, 1), ([7], 1, 1)):
        with pytest.raises(ValueError, match="must be different ids"):
            SpanCorruptionCollator(*arguments)


def test_the_tokenizer_has_the_sentinels_in_order_and_leaves_text_alone():
    tokenizer = train_sentinel_tokenizer(["some text, some more text"], 270, sentinels=3)
    ids = sentinel_ids(tokenizer)
    assert tokenizer.convert_ids_to_tokens(ids) == ["<extra_id_0>", "<extra_id_1>", "<extra_id_2>"]
    assert len({*ids, tokenizer.convert_tokens_to_ids("</s>"), tokenizer.eos_token_id, tokenizer.pad_token_id}) == 6
    assert tokenizer("a<extra_id_1>b")["input_ids"][1] == ids[1]
    assert tokenizer.decode(tokenizer("some more")["input_ids"]) == "some more"
    with pytest.raises(ValueError, match="got 0"):
        train_sentinel_tokenizer(["a"], 270, sentinels=0)


# Gaps


def test_gaps_take_turns_in_length_and_join_to_their_row():
    rows = [list(range(10, 40)), list(range(50, 85))]
    gaps = draw_gaps(rows, [1, 4], count=40, margin=6, seed=0)
    assert [len(gap.hidden) for gap in gaps] == [1, 4] * 20
    for gap in gaps:
        assert gap.left + gap.hidden + gap.right in rows
        assert min(len(gap.left), len(gap.right)) >= 6
    assert {min(len(gap.left), len(gap.right)) for gap in gaps} != {6}
    with pytest.raises(ValueError, match="need rows of 43, got 30"):
        draw_gaps(rows, [3, 31], count=2, margin=6, seed=0)


def t5_that_writes(tokens):
    """A stand-in that generates the same tokens for every input."""

    class Model:
        device, generation_config = torch.device("cpu"), GenerationConfig()

        def generate(self, input_ids, attention_mask, **kwargs):
            self.inputs = input_ids
            return torch.tensor([[PAD, *tokens]] * len(input_ids))

    return Model()


def test_a_filling_from_both_sides_counts_with_and_without_its_end():
    gaps = [Gap([5, 6], [7, 8], [9]), Gap([5], [7], [9, 10, 11]), Gap([5], [8], [9])]
    model = t5_that_writes([SENTINELS[0], 7, 8, SENTINELS[1], 7, EOS])
    fillings = fill_from_both_sides(model, gaps, SENTINELS, EOS, PAD)
    assert [filling.begins_right for filling in fillings] == [True, True, False]
    assert [filling.exact for filling in fillings] == [True, False, False]
    assert model.inputs[0].tolist() == [5, 6, SENTINELS[0], 9, EOS, PAD]


def test_a_filling_from_the_left_is_the_greedy_continuation_whatever_the_batch():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=23, n_positions=40, n_embd=8, n_layer=2, n_head=2, initializer_range=0.7)
    model = GPT2LMHeadModel(config).eval()
    lefts = [torch.randint(2, 23, (size,)).tolist() for size in (3, 7, 5, 4)]
    gaps = []
    for left in lefts:
        row = list(left)
        for _ in range(6):
            row.append(int(model(torch.tensor([row])).logits[0, -1].argmax()))
        gaps.append(Gap(left, row[len(left) :], [9]))
    wrong = [*gaps[0].hidden[:-1], (gaps[0].hidden[-1] + 1) % 23]
    gaps.append(Gap(gaps[0].left, wrong, [9]))
    # A text goes on behind the end of a document
    model.generation_config.eos_token_id = gaps[0].hidden[1]
    fillings = fill_from_the_left(model, gaps, PAD, batch_size=3)
    assert [filling.tokens for filling in fillings[:4]] == [gap.hidden for gap in gaps[:4]]
    assert [filling.begins_right for filling in fillings] == [True] * 4 + [False]


GAPS = [Gap([11, 12, 13], [14, 15], [16]), Gap([11], [12], [13, 14, 15, 16])]


def test_the_left_sides_nats_are_those_of_the_hidden_tokens():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=91, n_embd=8, n_layer=1, n_head=2, n_positions=9)).eval()
    logits = model(torch.tensor([[11, 12, 13, 14]])).logits.log_softmax(-1)[0]
    expected = [-(logits[2, 14] + logits[3, 15]).item() / 2, -logits[0, 12].item()]
    assert nats_from_the_left(model, GAPS, PAD) == pytest.approx(expected, rel=1e-4)


def test_both_sides_nats_are_the_loss_of_the_hidden_tokens_behind_the_sentinel():
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=91, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=PAD)
    ).eval()
    inputs = torch.tensor([[11, SENTINELS[0], 13, 14, 15, 16, EOS]])
    loss = model(input_ids=inputs, labels=torch.tensor([[-100, 12]]), decoder_input_ids=torch.tensor([[PAD, 90]])).loss
    assert nats_from_both_sides(model, GAPS, SENTINELS, EOS, PAD)[1] == pytest.approx(loss.item(), rel=1e-4)


def test_exact_spans_are_counted_one_by_one():
    collator = SpanCorruptionCollator(SENTINELS, EOS, PAD, noise_density=0.5, mean_span_length=1.0)
    batch = collator(rows_of(8))
    target = [token for token in batch["labels"][0].tolist() if token != -100]
    assert share_of_exact_spans(t5_that_writes(target), [batch], SENTINELS, EOS, PAD) == (4, 4)
    target[1] = 77  # the first span
    assert share_of_exact_spans(t5_that_writes(target), [batch], SENTINELS, EOS, PAD) == (3, 4)


# Masks


def test_a_model_reads_what_its_mask_lets_it_and_nothing_else(tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=23, n_embd=8, n_layer=2, n_head=2, n_positions=9)).eval()
    embedded = model.get_input_embeddings()(torch.arange(5)[None])
    measured = {
        name: influence(causal_model_states(model, mask), embedded)
        for name, mask in (("causal", None), ("prefix of 3", prefix_mask(5, 3)), ("none", prefix_mask(5, 5)))
    }
    assert torch.equal(measured["causal"] > 0, torch.ones(5, 5).tril().bool())
    assert torch.equal(measured["prefix of 3"] > 0, prefix_mask(5, 3)) and measured["none"].min() > 0
    assert plot_masks(measured, tmp_path / "masks.png").exists()


# Recipe


@pytest.mark.slow
def test_the_recipe_trains_both_and_fills_gaps(tmp_path):
    spec = importlib.util.spec_from_file_location("seq2seq_pretraining", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    metrics = recipe.main(
        [
            *("--output_dir", str(tmp_path), "--max_documents", "300", "--steps", "40", "--batch_size", "8"),
            *("--width", "32", "--layers", "1", "--vocab_size", "400", "--input_length", "40", "--gaps", "30"),
            *("--eval_rows", "20", "--longest_gap", "3"),
        ]
    )
    assert metrics["causal"]["perplexity"] < 300 and metrics["span_corruption"]["loss"] < 6.2  # log 435 is 6.1
    assert set(metrics["gaps"]) == {"GPT-2, left side", "T5, both sides", "T5, ends the gap too"}
    for file in ("seq2seq_pretraining.md", "seq2seq_pretraining.png", "samples.json", "metrics.json"):
        assert (tmp_path / file).exists(), file
    for model in ("gpt", "t5"):
        assert (tmp_path / model / "model.safetensors").exists()
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "finished"
