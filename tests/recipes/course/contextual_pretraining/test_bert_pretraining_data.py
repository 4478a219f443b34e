"""What BERT is pretrained on: pairs of segments, WordPiece rows, masked words; and the probe of frozen words."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.stats import binom
from transformers import BertConfig, BertForPreTraining

from hf_evidenceflow.recipes.course.contextual_pretraining.masking import WholeWordMaskingCollator
from hf_evidenceflow.recipes.course.contextual_pretraining.next_sentence import (
    sample_segment_pairs,
    split_sentences,
    trim_segments,
)
from hf_evidenceflow.recipes.course.contextual_pretraining.pretraining_evaluation import evaluate_bert
from hf_evidenceflow.recipes.course.contextual_pretraining.story_probe import (
    StoryExample,
    country_examples,
    majority_accuracy,
    owner_examples,
    train_probe,
)
from hf_evidenceflow.recipes.course.contextual_pretraining.word_states import bert_states, elmo_states
from hf_evidenceflow.recipes.course.contextual_pretraining.wordpiece import (
    pair_row,
    tokenize_sentences,
    train_wordpiece,
)
from hf_evidenceflow.recipes.course.shared.corpus import COUNTRIES, PEOPLE, generate_corpus


@pytest.fixture(scope="module")
def stories():
    return generate_corpus(300, seed=1)


@pytest.fixture(scope="module")
def wordpiece(stories):
    return train_wordpiece(stories, 110)


@pytest.fixture(scope="module")
def rows(wordpiece, stories):
    sentences = tokenize_sentences(wordpiece, [split_sentences(story) for story in stories])
    return [pair_row(wordpiece, pair) for pair in sample_segment_pairs(sentences, 101)]


def within_chance(successes, n, probability):
    low, high = binom.interval(1 - 1e-6, n, probability)
    return low <= successes <= high


# Pairs


@pytest.fixture(scope="module")
def pairs():
    """Documents of 2 to 6 sentences; a token names its document, its sentence and its place in it."""
    documents = [[[(d, s, t) for t in range(2 + s % 3)] for s in range(2 + d % 5)] for d in range(300)]
    return documents, sample_segment_pairs(documents, max_tokens=9, seed=3)


def test_half_of_the_pairs_follow_each_other(pairs):
    documents, sampled = pairs
    assert len(sampled) == sum(len(document) - 1 for document in documents)
    assert within_chance(sum(pair.is_next for pair in sampled), len(sampled), 0.5)


def test_true_pairs_meet_at_their_border_and_others_are_of_two_documents(pairs):
    documents, sampled = pairs
    for pair in sampled:
        assert {token[0] for token in pair.first} == {pair.document}
        assert {token[0] for token in pair.second} == {pair.other_document}
        assert pair.first[-1] == documents[pair.document][pair.border - 1][-1]
        follows = pair.second[0] == documents[pair.document][pair.border][0]
        assert follows == pair.is_next == (pair.document == pair.other_document)


def test_no_second_segment_begins_a_document(pairs):
    assert all(pair.second[0][1] > 0 for pair in pairs[1])


def test_a_sentence_that_is_the_true_one_word_for_word_is_no_wrong_one():
    documents = [[["a"], ["same"]], [["b"], ["same"]], [["c"], ["other"]]]
    for seed in range(20):
        for pair in sample_segment_pairs(documents, 9, seed=seed, next_share=0.0):
            assert pair.second != documents[pair.document][pair.border]
    assert sample_segment_pairs(documents[:2], 9, next_share=0.0) == []


def test_segments_are_cut_at_their_outer_ends():
    first, second = list(range(10)), list(range(10, 17))
    assert trim_segments(first, second, 20) == (first, second)
    assert trim_segments(first, second, 12) == ([4, 5, 6, 7, 8, 9], [10, 11, 12, 13, 14, 15])
    assert trim_segments(first, second[:2], 9) == ([3, 4, 5, 6, 7, 8, 9], [10, 11])
    assert trim_segments(first[:2], second, 7) == ([0, 1], [10, 11, 12, 13, 14])
    assert all(
        len(pair[0]) and len(pair[1]) for pair in [trim_segments(first, second, 2), trim_segments(first, second, 3)]
    )


@pytest.mark.parametrize(
    ("documents", "length", "message"),
    [([[["a"], ["b"]], [["c"]]], 9, "1 of 2 documents"), ([[["a"], ["b"]]] * 2, 1, "at least 2.*got 1")],
)
def test_documents_that_give_no_pairs_are_refused(documents, length, message):
    with pytest.raises(ValueError, match=message):
        sample_segment_pairs(documents, length)


def test_sentences_end_at_marks_and_lines():
    assert split_sentences("He came . She went !\nWas it 3.5 ?\n . \n") == ["He came .", "She went !", "Was it 3.5 ?"]


# WordPiece


def test_rows_fit_and_have_the_segments_of_bert(wordpiece, rows):
    lengths = {len(row["input_ids"]) for row in rows}
    assert max(lengths) == 104 and len(lengths) > 3
    cls, sep = wordpiece.cls_token_id, wordpiece.sep_token_id
    for row in rows:
        ids, first = row["input_ids"], row["input_ids"].index(sep) + 1
        assert ids[0] == cls and ids[-1] == sep and ids.count(sep) == 2
        assert row["token_type_ids"] == [0] * first + [1] * (len(ids) - first)
        assert [place for place, mark in enumerate(row["special_tokens_mask"]) if mark] == [0, first - 1, len(ids) - 1]


def test_a_row_is_what_the_tokenizer_makes_of_the_pair(wordpiece):
    documents = [["the king went to oslo .", "he took his coat ."], ["a dog ran .", "it was wet ."]]
    pair = sample_segment_pairs(tokenize_sentences(wordpiece, documents), 99, next_share=1.0)[0]
    expected = wordpiece(*documents[0], return_special_tokens_mask=True)
    row = pair_row(wordpiece, pair)
    for name in ("input_ids", "token_type_ids", "special_tokens_mask"):
        assert row[name] == expected[name], name
    assert row["next_sentence_label"] == 0  # as BertForPreTraining has it


@pytest.mark.slow
def test_the_same_text_gives_the_same_tokenizer_in_another_process(wordpiece):
    script = (
        "import sys; sys.argv[0] = 'hf-evidenceflow'; "  # by this name the package registers no models
        "import hashlib; from hf_evidenceflow.recipes.course.contextual_pretraining.wordpiece import train_wordpiece; "
        "from hf_evidenceflow.recipes.course.shared.corpus import generate_corpus; "
        "t = train_wordpiece(generate_corpus(300, seed=1), 110); "
        "print(hashlib.md5(str(sorted(t.get_vocab().items())).encode()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    own = hashlib.md5(str(sorted(wordpiece.get_vocab().items())).encode()).hexdigest()
    assert done.stdout.split()[-1] == own


def test_letters_in_the_text_are_no_special_tokens(wordpiece):
    assert wordpiece.tokenize("The king a") == [*wordpiece.tokenize("the king"), "a"]
    assert "[UNK]" not in wordpiece.tokenize("stockholm") and len(wordpiece.tokenize("stockholm")) > 1
    assert sorted(wordpiece.all_special_tokens) == ["[CLS]", "[MASK]", "[PAD]", "[SEP]", "[UNK]"]


def test_a_vocabulary_without_room_for_the_letters_is_refused(stories):
    with pytest.raises(ValueError, match="`vocab_size` must be at least .* got 20"):
        train_wordpiece(stories, 20)


# Masking


@pytest.fixture(scope="module")
def masked(wordpiece, rows):
    collator = WholeWordMaskingCollator(wordpiece, mlm_probability=0.15, seed=5)
    batches = [collator([dict(row) for row in rows[start : start + 50]]) for start in range(0, len(rows), 50)]
    return [
        (row, batch["input_ids"][index].numpy(), batch["labels"][index].numpy())
        for number, batch in enumerate(batches)
        for index, row in enumerate(rows[50 * number : 50 * number + len(batch["labels"])])
    ]


def test_80_percent_become_masks_10_another_token_and_10_stay(wordpiece, masked):
    counts, total = np.zeros(3, dtype=int), 0
    for _, ids, labels in masked:
        chosen = labels != -100
        is_mask, stays = ids[chosen] == wordpiece.mask_token_id, ids[chosen] == labels[chosen]
        counts += [is_mask.sum(), (~is_mask & ~stays).sum(), stays.sum()]
        total += chosen.sum()
    assert total > 5000 and counts.sum() == total
    # A token drawn at random may be [MASK] or the old one
    slip = 0.1 / len(wordpiece)
    for count, share in zip(counts, (0.8 + slip, 0.1 - 2 * slip, 0.1 + slip)):
        assert within_chance(count, total, share), (counts, total)


def test_words_are_chosen_whole_and_15_percent_of_them(wordpiece, masked):
    chosen_words, words, long_words = 0, 0, 0
    for row, _, labels in masked:
        place = 0
        while place < len(row["input_ids"]):
            if row["special_tokens_mask"][place]:
                assert labels[place] == -100
                place += 1
                continue
            end = place + 1  # pieces behind the first begin with ##
            while wordpiece.convert_ids_to_tokens(row["input_ids"][end]).startswith("##"):
                end += 1
            chosen = labels[place:end] != -100
            assert chosen.all() or not chosen.any(), wordpiece.convert_ids_to_tokens(row["input_ids"][place:end])
            chosen_words, words, long_words = chosen_words + chosen[0], words + 1, long_words + (end > place + 1)
            place = end
    assert within_chance(chosen_words, words, 0.15) and long_words > 1000


def test_what_is_not_chosen_is_left_alone_and_padding_never_chosen(wordpiece, masked):
    for row, ids, labels in masked:
        length = len(row["input_ids"])
        assert (ids[length:] == wordpiece.pad_token_id).all() and (labels[length:] == -100).all()
        kept = np.where(labels[:length] == -100, ids[:length], labels[:length])
        assert kept.tolist() == row["input_ids"]


def test_a_seed_masks_the_same_tokens_again(wordpiece, rows):
    first, second, other = (
        WholeWordMaskingCollator(wordpiece, seed=seed)([dict(row) for row in rows[:9]])["input_ids"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_shares_above_one_and_padding_at_the_left_are_refused(wordpiece, tokenizer):
    with pytest.raises(ValueError, match="got 0.8 and 0.3"):
        WholeWordMaskingCollator(wordpiece, random_replace_prob=0.3)
    with pytest.raises(ValueError, match="padding_side = 'right'"):
        WholeWordMaskingCollator(tokenizer)


# Evaluation and probe


@pytest.fixture(scope="module")
def bert(wordpiece):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(wordpiece),
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    return BertForPreTraining(config).eval()


def test_the_evaluation_is_the_models_own_loss(bert, wordpiece, rows):
    batch = WholeWordMaskingCollator(wordpiece, seed=3)([dict(row) for row in rows[:30]])
    measured = evaluate_bert(bert, lambda _: dict(batch), rows[:30], batch_size=30)
    with torch.no_grad():
        output = bert(**batch)
    following = torch.nn.functional.cross_entropy(output.seq_relationship_logits, batch["next_sentence_label"])
    assert measured["mlm_loss"] == pytest.approx((output.loss - following).item(), rel=1e-4)
    right = (output.seq_relationship_logits.argmax(-1) == batch["next_sentence_label"]).float().mean()
    assert measured["nsp_accuracy"]["value"] == pytest.approx(right.item())
    assert measured["masked_tokens"] == int((batch["labels"] != -100).sum())


def test_the_probes_words_are_those_that_say_nothing(stories):
    countries, owners = country_examples(stories), owner_examples(stories)
    assert len(countries) > 40 and len(owners) > 40
    for words, place, label in countries:
        assert words[place - 1 : place + 1] == ["saw", "the"] and COUNTRIES[label][1] in words
    for words, place, label in owners:
        assert words[place + 1] == "eats" and words[0] == "the" and words[1] in {pair[label] for pair in PEOPLE}
        assert words[place] not in {word for pair in PEOPLE for word in pair}


def test_bert_is_asked_at_the_pieces_of_the_word(bert, wordpiece):
    words = ["the", "king", "went", "to", "stockholm", ".", "so", "he", "saw", "the", "tower", "of", "stockholm", "."]
    examples = [StoryExample(words, 4, 0), StoryExample(words, 12, 0), StoryExample(["a", "king", ".", "it"], 1, 0)]
    states = bert_states(bert.bert, wordpiece, examples, batch_size=2)
    assert states.shape == (3, 3, 12)
    encoded = wordpiece("the king went to stockholm .", "so he saw the tower of stockholm .", return_tensors="pt")
    layers = bert.bert(**encoded, output_hidden_states=True).hidden_states
    pieces = wordpiece.tokenize("stockholm")
    tokens = wordpiece.convert_ids_to_tokens(encoded["input_ids"][0])
    places = [start for start in range(len(tokens)) if tokens[start : start + len(pieces)] == pieces]
    assert len(places) == 2 and len(pieces) > 1
    for example, place in enumerate(places):
        expected = layers[-1][0, place : place + len(pieces)].mean(0)
        torch.testing.assert_close(states[example, -1], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(states[0, 0], states[1, 0])  # the embedding alone knows no context


def test_a_word_that_is_cut_off_is_an_error(bert, wordpiece):
    with pytest.raises(ValueError, match="'end' is cut off.*141 words"):
        bert_states(bert.bert, wordpiece, [StoryExample([*["king"] * 140, "end"], 140, 0)])


def test_elmo_is_asked_behind_the_begin_of_the_text():
    from hf_evidenceflow.recipes.course.contextual_pretraining.configuration_elmo import ElmoConfig
    from hf_evidenceflow.recipes.course.contextual_pretraining.elmo_data import ElmoCollator
    from hf_evidenceflow.recipes.course.contextual_pretraining.modeling_elmo import ElmoForLanguageModeling

    torch.manual_seed(0)
    model = ElmoForLanguageModeling(ElmoConfig(vocab_size=3, hidden_size=5, lstm_size=7)).eval()
    collator = ElmoCollator(["<unk>", "<s>", "</s>"], 16)
    examples = [StoryExample(["a", "b", "c"], 2, 0), StoryExample(["c", "d"], 0, 0), StoryExample(["b"], 0, 0)]
    states = elmo_states(model, collator, examples, batch_size=2)
    assert states.shape == (3, 3, 10)
    torch.testing.assert_close(states[0, 0], states[1, 0])  # both are asked at `c`
    assert not torch.allclose(states[0, 2], states[1, 2], atol=1e-3)


def test_a_probe_finds_the_layer_that_knows_and_chance_where_none_does():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (400,), generator=generator)
    noise = torch.randn(400, 2, 7, generator=generator)
    telling = noise.clone()
    telling[:, 1, :3] += 4 * torch.nn.functional.one_hot(labels, 3)
    known, blind = (train_probe(x[:300], labels[:300], x[300:], labels[300:]) for x in (telling, noise))
    assert known.accuracy.value > 0.9 and known.weights[1] > 0.7
    assert blind.accuracy.low < 0.37 < blind.accuracy.high + 0.1 and blind.accuracy.value < 0.5


def test_the_probe_leaves_the_random_state_alone():
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    train_probe(torch.zeros(3, 1, 2), torch.tensor([0, 1, 0]), torch.zeros(2, 1, 2), torch.tensor([0, 1]), steps=1)
    assert torch.equal(torch.rand(1), expected)


def test_the_majority_is_that_of_the_training_labels():
    assert majority_accuracy([2, 2, 0], [2, 0, 0, 0, 0]).value == 0.2
