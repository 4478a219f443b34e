"""ELMo's model and data, the scalar mix, and the recipe; BERT's data is in `test_bert_pretraining_data.py`."""

import importlib.util
import json

import pytest
import torch
from repository import RECIPES
from torch import nn

from hf_evidenceflow.recipes.course.contextual_pretraining.character_encoder import CharacterEncoder, Highway
from hf_evidenceflow.recipes.course.contextual_pretraining.configuration_elmo import ElmoConfig
from hf_evidenceflow.recipes.course.contextual_pretraining.elmo_data import (
    ElmoCollator,
    build_vocabulary,
    cut_texts,
    unigram_perplexity,
    word_characters,
)
from hf_evidenceflow.recipes.course.contextual_pretraining.modeling_elmo import (
    ElmoForLanguageModeling,
    reverse_words,
)
from hf_evidenceflow.recipes.course.contextual_pretraining.pretraining_evaluation import evaluate_elmo
from hf_evidenceflow.recipes.course.contextual_pretraining.pretraining_plot import plot_pretraining, pretraining_rows
from hf_evidenceflow.recipes.course.contextual_pretraining.scalar_mix import ScalarMix
from hf_evidenceflow.recipes.course.shared.picture_rows import PictureRows


RECIPE = RECIPES / "course" / "contextual_pretraining" / "run.py"
SIZES = {
    "vocab_size": 11,
    "max_characters": 7,
    "character_size": 3,
    "filters": [[1, 2], [3, 4]],
    "hidden_size": 5,
    "lstm_size": 8,
    "num_hidden_layers": 3,
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ElmoForLanguageModeling(ElmoConfig(**SIZES)).eval()


@pytest.fixture
def collator():
    return ElmoCollator(["<unk>", "<s>", "</s>", "the", "horse", "eats", "hay"], SIZES["max_characters"])


# Character encoder


@pytest.mark.parametrize("bias", [-100.0, 100.0])
def test_a_closed_gate_lets_the_input_pass_and_an_open_one_nothing_of_it(bias):
    torch.manual_seed(0)
    highway, inputs = Highway(5), torch.randn(2, 3, 5)
    nn.init.constant_(highway.gate.bias, bias)
    expected = inputs if bias < 0 else highway.transform(inputs).relu()
    torch.testing.assert_close(highway(inputs), expected)


def test_the_character_encoder_is_a_plain_loop():
    torch.manual_seed(0)
    encoder = CharacterEncoder(11, 3, [[1, 2], [3, 4]], 0, 5)
    characters = torch.tensor([[[1, 4, 2, 0, 0], [1, 9, 10, 3, 2]]])
    for word in range(2):
        embedded = encoder.embedding.weight[characters[0, word]]  # [C, E]
        values = []
        for convolution in encoder.convolutions:
            count, _, width = convolution.weight.shape
            for index in range(count):
                places = [
                    (convolution.weight[index].T * embedded[start : start + width]).sum() + convolution.bias[index]
                    for start in range(5 - width + 1)
                ]
                values.append(max(places).clamp(min=0))
        expected = encoder.projection.weight @ torch.stack(values) + encoder.projection.bias
        torch.testing.assert_close(encoder(characters)[0, word], expected)


def test_a_word_has_one_vector_wherever_it_stands(model):
    characters = torch.randint(0, 261, (2, 5, 7), generator=torch.Generator().manual_seed(0))
    characters[1, 3] = characters[0, 1]
    words = model(characters).hidden_states[0]
    torch.testing.assert_close(words[1, 3], words[0, 1])


# Both directions


def test_reversing_leaves_the_padding_in_place_and_is_its_own_inverse():
    states = torch.arange(10.0).view(2, 5, 1)
    lengths = torch.tensor([3, 5])
    turned = reverse_words(states, lengths)
    assert turned[..., 0].tolist() == [[2, 1, 0, 3, 4], [9, 8, 7, 6, 5]]
    assert torch.equal(reverse_words(turned, lengths), states)


def test_each_direction_sees_its_own_side_only(model):
    characters = torch.randint(1, 261, (1, 6, 7), generator=torch.Generator().manual_seed(0))
    plain = torch.stack(model(characters).hidden_states)[1:, 0]  # [L, T, 2 H]
    place, size = 3, SIZES["hidden_size"]
    for changed in (1, 5):
        other = characters.clone()
        other[0, changed] = characters[0, 2].flip(0)
        states = torch.stack(model(other).hidden_states)[1:, 0]
        same, different = (slice(size, None), slice(size)) if changed < place else (slice(size), slice(size, None))
        assert torch.equal(states[:, place, same], plain[:, place, same])
        assert (states[:, place, different] - plain[:, place, different]).abs().max() > 1e-4


def test_the_losses_are_those_of_a_plain_loop(model):
    characters = torch.randint(1, 261, (2, 4, 7), generator=torch.Generator().manual_seed(0))
    mask, labels = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]), torch.tensor([[1, 5, 3, 2], [1, 4, 2, 7]])
    output = model(characters, mask, labels)
    top, size = output.hidden_states[-1], SIZES["hidden_size"]
    forward, backward = [], []
    for row, length in enumerate((4, 3)):
        for place in range(length):
            if place + 1 < length:
                logits = model.softmax(top[row, place, :size])
                forward.append(-logits.log_softmax(-1)[labels[row, place + 1]])
            if place > 0:
                logits = model.softmax(top[row, place, size:])
                backward.append(-logits.log_softmax(-1)[labels[row, place - 1]])
    torch.testing.assert_close(output.forward_loss, torch.stack(forward).mean())
    torch.testing.assert_close(output.backward_loss, torch.stack(backward).mean())
    torch.testing.assert_close(output.loss, output.forward_loss + output.backward_loss)


def test_the_directions_share_the_softmax_but_no_lstm(model):
    own = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert own == {"encoder", "forward_lstm", "backward_lstm", "softmax"}
    pairs = zip(model.forward_lstm.parameters(), model.backward_lstm.parameters())
    assert not any(torch.equal(first, second) for first, second in pairs)


def test_from_the_second_layer_on_the_input_is_added(model):
    words = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    first, second, _ = model.forward_lstm(words)
    torch.testing.assert_close(first, model.forward_lstm.layers[0](words)[0])
    torch.testing.assert_close(second, model.forward_lstm.layers[1](first)[0] + first)


def test_padding_changes_neither_states_nor_losses(model, collator):
    short, long = {"words": ["the", "horse"]}, {"words": ["the", "horse", "eats", "some", "hay"]}
    alone, both = model(**collator([short])), model(**collator([short, long]))
    for plain, padded in zip(alone.hidden_states, both.hidden_states):
        torch.testing.assert_close(padded[:1, :4], plain)
    other = model(**collator([long]))
    for name in ("forward_loss", "backward_loss"):  # 3 words are predicted in the short row, 6 in the long one
        torch.testing.assert_close(both[name], (3 * alone[name] + 6 * other[name]) / 9)


def test_a_saved_model_is_the_same(model, collator, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = ElmoForLanguageModeling.from_pretrained(tmp_path).eval()
    batch = collator([{"words": ["the", "hay"]}])
    assert torch.equal(loaded(**batch).loss, model(**batch).loss)
    assert loaded.config.filters == SIZES["filters"] and (tmp_path / "model.safetensors").exists()


def test_the_gates_begin_mostly_closed_and_padding_characters_at_nothing(model):
    assert all((highway.gate.bias == -1).all() for highway in model.encoder.highways)
    assert (model.encoder.embedding.weight[0] == 0).all() and model.encoder.embedding.weight[1:].std() > 0.3


@pytest.mark.parametrize(
    ("change", "message"),
    [({"filters": [[9, 2]]}, r"\[1, 7\].*\[\[9, 2\]\]"), ({"lstm_size": 5}, "above `hidden_size`.*5 and 5")],
)
def test_sizes_that_do_not_fit_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        ElmoConfig(**SIZES | change)


def test_the_perplexity_of_a_model_without_preference_is_the_vocabulary(model, collator):
    nn.init.zeros_(model.softmax.weight)
    nn.init.zeros_(model.softmax.bias)
    measured = evaluate_elmo(model, collator, [{"words": ["the"]}, {"words": ["hay"] * 4}, {"words": ["eats"]}], 2)
    assert measured["words"] == 2 + 5 + 2
    assert measured["forward_perplexity"] == pytest.approx(11, rel=1e-5)
    assert measured["backward_perplexity"] == pytest.approx(11, rel=1e-5)


# Words


def test_a_word_is_its_bytes_between_begin_and_end():
    assert word_characters("aé", 7) == [257, 98, 196, 170, 258, 0, 0]
    assert word_characters("abcdefgh", 5) == [257, 98, 99, 100, 258]
    assert word_characters("<s>", 4) == [257, 259, 258, 0] and word_characters("</s>", 4) == [257, 260, 258, 0]


def test_no_room_for_a_character_is_refused():
    with pytest.raises(ValueError, match="at least 3.*got 2"):
        word_characters("a", 2)


def test_the_vocabulary_has_the_most_frequent_words():
    assert build_vocabulary([["b", "a", "c"], ["c", "<unk>", "b", "b"]], 5) == ["<unk>", "<s>", "</s>", "b", "c"]


def test_long_texts_are_cut_and_single_words_left_out():
    assert cut_texts(["a b c d e", "f"], 2) == [["a", "b"], ["c", "d"]]


def test_unknown_words_are_read_but_not_told_apart_as_labels(collator):
    batch = collator([{"words": ["zebra", "hay"]}, {"words": ["the"]}])
    assert batch["labels"].tolist() == [[1, 0, 6, 2], [1, 3, 2, -100]]
    assert batch["characters"][0, 1].tolist() == word_characters("zebra", 7)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


# Scalar mix


def test_the_mix_is_the_mean_at_first_and_the_papers_formula_later():
    layers = torch.randn(2, 5, 3, 7, generator=torch.Generator().manual_seed(0))
    mix = ScalarMix(3)
    torch.testing.assert_close(mix(layers), layers.mean(2))
    with torch.no_grad():
        mix.scores.copy_(torch.tensor([0.3, -1.0, 2.0]))
        mix.gamma.fill_(1.7)
    scores = [2.718281828459045**score for score in (0.3, -1.0, 2.0)]
    expected = 1.7 * sum(score / sum(scores) * layers[:, :, index] for index, score in enumerate(scores))
    torch.testing.assert_close(mix(layers), expected)


def test_layers_of_another_number_are_refused():
    with pytest.raises(ValueError, match="must have 3 layers in dimension -2, got 5"):
        ScalarMix(3)(torch.zeros(3, 5, 7))


# Frequencies and curves


def test_words_that_are_all_as_frequent_cost_as_many_choices():
    texts = [["a", "b", "c"]]  # and the end
    assert unigram_perplexity(texts, texts, ["<unk>", "<s>", "</s>", "a", "b", "c"]) == pytest.approx(10 / 2)
    assert unigram_perplexity(texts, [["x"]], ["<unk>", "<s>", "</s>", "a"]) < 5  # two of three are unknown


def test_the_picture_has_each_loss_apart(tmp_path):
    keys = ("forward_loss", "backward_loss", "masked_token_loss", "next_sentence_loss")
    log = [{"step": step, **{key: 1 / step + place for place, key in enumerate(keys)}} for step in range(1, 6)]
    probes = {"country": {name: {"value": 0.5, "low": 0.4, "high": 0.7} for name in ("layer", "majority")}}
    path = tmp_path / "picture.png"
    for rows in (
        pretraining_rows({"ELMo": log, "BERT": log}, probes, {"country": [0.2, 0.8]}, {"elmo": {"words": 5}}),
        pretraining_rows({"BERT": log}, {}, {}, {}),
    ):
        assert plot_pretraining(PictureRows("contextual_pretraining", [0], {}, **rows), path).exists()


# Recipe


def load_recipe():
    spec = importlib.util.spec_from_file_location("contextual_pretraining", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe


TINY = ["--hidden_size", "16", "--elmo_steps", "40", "--bert_steps", "30", "--batch_size", "16", "--bert_layers", "1"]


@pytest.mark.slow
def test_the_recipe_learns_something_and_saves_both_models(tmp_path):
    stories = ["--max_documents", "300", "--probe_stories", "300"]
    metrics = load_recipe().main(["--output_dir", str(tmp_path), *TINY, *stories])
    assert metrics["elmo"]["forward_perplexity"] < 100 and metrics["elmo"]["backward_perplexity"] < 100
    assert metrics["bert"]["mlm_accuracy"]["value"] > 0.02  # of about 160 tokens
    for question in metrics["probe"].values():
        assert {"ELMo scalar mix", "BERT last layer", "majority"} < set(question)
    assert all(sum(weights) == pytest.approx(1) for weights in metrics["mix_weights"].values())
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "finished"
    words = json.loads((tmp_path / "elmo" / "words.json").read_text())
    assert ElmoForLanguageModeling.from_pretrained(tmp_path / "elmo").config.vocab_size == len(words)
    for file in (
        "contextual_pretraining.md",
        "contextual_pretraining.png",
        "bert/model.safetensors",
        "bert/tokenizer.json",
    ):
        assert (tmp_path / file).exists(), file


@pytest.mark.slow
def test_a_text_of_ones_own_has_no_probe(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"A cat {n} sat. It was warm {n % 7}.\nThen {n % 5} came.\n\n" for n in range(60)))
    metrics = load_recipe().main(["--output_dir", str(tmp_path / "out"), "--text_file", str(text), *TINY])
    assert metrics["probe"] == {} and metrics["bert"]["pairs"] == 6 * 2
