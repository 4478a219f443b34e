"""Skip-gram's noise table and Huffman tree, GloVe's counts, loss and steps, the analogies, and the recipe."""

import heapq
import importlib.util
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from repository import RECIPES

from hf_evidenceflow.recipes.course.word_vectors.analogies import read_questions, score_analogies
from hf_evidenceflow.recipes.course.word_vectors.cooccurrence import count_cooccurrences
from hf_evidenceflow.recipes.course.word_vectors.dictionary_questions import dictionary_pairs, frequent_questions
from hf_evidenceflow.recipes.course.word_vectors.glove import (
    GloveParameters,
    glove_loss,
    glove_vectors,
    glove_weight,
    train_glove,
)
from hf_evidenceflow.recipes.course.word_vectors.vectors_plot import principal_components, spread_labels


gensim = pytest.importorskip("gensim")

from hf_evidenceflow.recipes.course.word_vectors.huffman import (  # noqa: E402
    huffman_log_probabilities,
    huffman_probabilities,
    huffman_summary,
)
from hf_evidenceflow.recipes.course.word_vectors.skip_gram import (  # noqa: E402
    noise_distribution,
    stable_hash,
    text_words,
    train_skip_gram,
    word_counts,
)


RECIPE = RECIPES / "course" / "word_vectors" / "run.py"
COUNTS = {"a": 31, "b": 17, "c": 11, "d": 7, "e": 3, "f": 2, "g": 2}


@pytest.fixture(scope="module")
def sentences():
    words = np.array([word for word, count in COUNTS.items() for _ in range(count)])
    np.random.default_rng(0).shuffle(words)
    return [list(map(str, words[start : start + 6])) for start in range(0, len(words), 6)]


def train(sentences, **kwargs):
    return train_skip_gram(
        sentences, **{"vector_size": 5, "window": 2, "min_count": 1, "epochs": 3, "seed": 0, "sample": 0} | kwargs
    )


@pytest.fixture(scope="module")
def tree_model(sentences):
    model = train(sentences, hierarchical_softmax=True)
    # Large vectors, under which a wrong sign or node shows
    rng = np.random.default_rng(1)
    model.syn1[:] = rng.normal(size=model.syn1.shape)
    model.wv.vectors[:] = rng.normal(size=model.wv.vectors.shape)
    return model


# Skip-gram


def test_words_are_lower_case_without_punctuation():
    assert text_words("He saw Paris , didn't he ?\nYes .") == ["he", "saw", "paris", "didn't", "he", "yes"]


def test_the_noise_follows_the_counts_to_the_power_of_three_quarters(sentences):
    model = train(sentences)
    expected = np.array([COUNTS[word] ** 0.75 for word in model.wv.index_to_key])
    np.testing.assert_allclose(noise_distribution(model), expected / expected.sum(), atol=1e-8)


def test_another_exponent_gives_another_noise(sentences):
    flat, plain = (noise_distribution(train(sentences, ns_exponent=power)) for power in (0.0, 1.0))
    np.testing.assert_allclose(flat, 1 / len(COUNTS), atol=1e-8)
    np.testing.assert_allclose(plain[0], 31 / sum(COUNTS.values()), atol=1e-8)


@pytest.mark.slow
def test_the_vectors_do_not_depend_on_pythons_hash(capsys):
    script = (
        "from hf_evidenceflow.recipes.course.word_vectors.skip_gram import train_skip_gram; "
        "m = train_skip_gram([list('abcabdacb')] * 9, 3, 2, 1, 2, 0); print(sorted(m.wv.index_to_key), "
        "[float(m.wv[w][0]) for w in 'abcd'])"
    )
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = os.environ | {"PYTHONHASHSEED": seed}
    other = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    exec(script, {})
    assert other.stdout == capsys.readouterr().out != ""


def test_gensim_gets_a_hash_that_is_the_same_everywhere(sentences):
    assert train(sentences).hashfxn("paris") == stable_hash("paris") == 2519518178


def test_no_word_of_a_long_text_is_passed_over(monkeypatch):
    given = []
    monkeypatch.setattr(gensim.models, "Word2Vec", lambda sentences, **kwargs: given.extend(sentences))
    words = [f"w{index % 7}" for index in range(25_003)]  # gensim reads 10,000 words of a text
    train([words, ["w1", "w2"]])
    assert max(map(len, given)) <= 10_000 and [word for text in given for word in text] == [*words, "w1", "w2"]


def test_the_vocabulary_is_in_gensims_order(sentences):
    assert list(word_counts(sentences, 1)) == train(sentences).wv.index_to_key


def test_too_few_words_are_an_error_with_their_number():
    with pytest.raises(ValueError, match="Only 1 of 3 words .* 4 times"):
        train([list("aaaab"), list("bbc")], min_count=4)


def test_a_model_without_noise_says_so(tree_model):
    with pytest.raises(ValueError, match="no table of noise words"):
        noise_distribution(tree_model)


# Huffman tree


def test_the_probabilities_of_all_words_sum_to_one(tree_model):
    for word in COUNTS:
        assert huffman_probabilities(tree_model, tree_model.wv[word]).sum() == pytest.approx(1, abs=1e-12)


def test_the_probabilities_are_those_that_gensim_scores_sentences_with(tree_model):
    sentence = ["c", "a", "g"]
    score = tree_model.score([sentence], total_sentences=1)[0]
    place = tree_model.wv.key_to_index
    expected = sum(  # gensim takes the context's vector and asks for the word in the middle
        huffman_log_probabilities(tree_model, tree_model.wv[context])[place[word]]
        for word, context in itertools.permutations(sentence, 2)
    )
    # Its table of logarithms rounds each decision's argument down, for arguments up to 2 by at most 0.044
    decisions = 2 * sum(len(tree_model.wv.get_vecattr(word, "code")) for word in sentence)
    assert 0 < expected - score < 0.044 * decisions
    assert -score > 10 * 0.044 * decisions


def test_no_code_begins_another(tree_model):
    codes = ["".join(map(str, tree_model.wv.get_vecattr(index, "code"))) for index in range(len(COUNTS))]
    assert not any(first != second and second.startswith(first) for first in codes for second in codes)
    assert sum(2.0 ** -len(code) for code in codes) == 1  # the tree is full: no way ends in nothing


def test_no_tree_has_shorter_codes(tree_model):
    # The sum of all merged counts is the total length of Huffman's codes
    heap, total = list(COUNTS.values()), 0
    heapq.heapify(heap)
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    summary = huffman_summary(tree_model)
    assert summary.mean_length == pytest.approx(total / sum(COUNTS.values()))
    assert summary.entropy <= summary.mean_length < summary.entropy + 1


def test_training_makes_the_words_of_a_context_likely():
    model = train([["x", "y"]] * 50 + [["u", "v"]] * 50 + [["p", "q"]] * 50, epochs=40, hierarchical_softmax=True)
    for word, other in (("x", "y"), ("v", "u"), ("q", "p")):
        probabilities = huffman_probabilities(model, model.wv[word])
        assert model.wv.index_to_key[probabilities.argmax()] == other and probabilities.max() > 0.8


def test_a_model_without_a_tree_says_so(sentences):
    model = train(sentences)
    with pytest.raises(ValueError, match="no Huffman tree.*hs=1"):
        huffman_probabilities(model, model.wv["a"])
    with pytest.raises(ValueError, match="no Huffman tree"):
        huffman_summary(model)


def test_a_vector_of_another_size_is_an_error(tree_model):
    with pytest.raises(ValueError, match=r"\(5,\), got \(3,\)"):
        huffman_probabilities(tree_model, np.zeros(3))


# GloVe


def test_counts_are_those_of_a_plain_loop(sentences):
    vocabulary = {word: index for index, word in enumerate("gfedcb")}  # `a` is not in it
    counts = count_cooccurrences([*sentences, [], ["a"]], vocabulary, window=3).toarray()
    expected = np.zeros((6, 6))
    for words in sentences:
        kept = [vocabulary[word] for word in words if word in vocabulary]
        for i, word in enumerate(kept):
            for j, context in enumerate(kept):
                if i != j and abs(i - j) <= 3:
                    expected[word, context] += 1 / abs(i - j)
    np.testing.assert_allclose(counts, expected, rtol=1e-12)


def test_a_window_of_nothing_is_refused():
    with pytest.raises(ValueError, match="`window` must be at least 1, got 0"):
        count_cooccurrences([["a"]], {"a": 0}, window=0)


def test_rare_pairs_weigh_less_and_frequent_ones_one():
    weights = glove_weight(torch.tensor([2.0, 16.0, 32.0, 500.0]), x_max=32)
    torch.testing.assert_close(weights, torch.tensor([2**-3, 2**-0.75, 1.0, 1.0]))


@pytest.fixture
def glove_batch():
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 3), (5, 3), (5,), (5,))
    parameters = GloveParameters(
        *(torch.randn(shape, generator=generator, dtype=torch.double).requires_grad_() for shape in shapes)
    )
    # Word 4 and context 2 come several times, and one pair twice
    rows, columns = torch.tensor([4, 0, 4, 1, 4, 2, 1]), torch.tensor([2, 2, 2, 3, 0, 2, 4])
    counts = torch.tensor([0.5, 3, 7, 12, 40, 9, 1], dtype=torch.double)
    return parameters, rows, columns, counts


def test_gloves_loss_is_that_of_a_plain_loop(glove_batch):
    parameters, rows, columns, counts = glove_batch
    w, c, b, d = (parameter.detach().numpy() for parameter in parameters)
    expected = 0.0
    for i, j, x in zip(rows.tolist(), columns.tolist(), counts.tolist()):
        weight = (x / 10) ** 0.75 if x < 10 else 1
        expected += weight * (float(w[i] @ c[j]) + b[i] + d[j] - np.log(x)) ** 2
    loss = glove_loss(*glove_batch, x_max=10)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_a_step_is_adagrads_with_the_gradients_of_the_paper():
    table = np.array([[0, 2, 1], [2, 0, 50], [1, 5, 0.5]])
    start, _ = train_glove(table, 2, epochs=0, x_max=10, seed=3)
    trained, _ = train_glove(table, 2, epochs=1, x_max=10, learning_rate=0.3, batch_size=100, seed=3)
    w, c, b, d = (parameter.double().numpy() for parameter in start)
    gradients = [np.zeros_like(array) for array in (w, c, b, d)]
    for i, j in zip(*table.nonzero()):
        weight = min(1, (table[i, j] / 10) ** 0.75)
        slope = 2 * weight * (w[i] @ c[j] + b[i] + d[j] - np.log(table[i, j]))
        for gradient, index, part in zip(gradients, (i, j, i, j), (c[j], w[i], 1, 1)):
            gradient[index] += slope * part
    for own, before, gradient in zip(trained, start, gradients):
        expected = before.numpy() - 0.3 * gradient / np.sqrt(1 + gradient**2)
        torch.testing.assert_close(own, torch.from_numpy(expected).float())


def test_a_log_bilinear_table_is_found_again():
    generator = torch.Generator().manual_seed(3)
    w, c = (torch.randn(7, 2, generator=generator) * 0.7 for _ in range(2))
    b, d = (torch.randn(7, generator=generator) for _ in range(2))
    logs = w @ c.T + b[:, None] + d
    parameters, losses = train_glove(logs.exp().numpy(), 2, epochs=600, x_max=1e-3, learning_rate=0.3, batch_size=49)
    found = parameters.words @ parameters.contexts.T + parameters.word_bias[:, None] + parameters.context_bias
    assert losses[-1] < 1e-4 * losses[0]
    torch.testing.assert_close(found, logs, atol=0.02, rtol=0)


def test_a_words_vector_is_the_sum_of_its_two():
    parameters = GloveParameters(torch.full((3, 2), 5.0), torch.full((3, 2), 7.0), torch.zeros(3), torch.zeros(3))
    assert glove_vectors(parameters).tolist() == [[12.0, 12.0]] * 3


def test_the_same_seed_gives_the_same_vectors():
    table = np.array([[0, 2, 1], [2, 0, 5], [1, 5, 0.5]])
    first, second, other = (train_glove(table, 2, 3, 10, batch_size=2, seed=seed)[0].words for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)


@pytest.mark.parametrize(("table", "x_max", "message"), [(np.zeros((2, 2)), 1, "no pair"), (np.eye(2), 0, "got 0")])
def test_tables_that_teach_nothing_are_refused(table, x_max, message):
    with pytest.raises(ValueError, match=message):
        train_glove(table, 2, 1, x_max)


# Analogies


@pytest.fixture
def keyed():
    keyed = gensim.models.KeyedVectors(3)
    keyed.add_vectors(
        ["france", "paris", "italy", "rome", "noise"],
        np.array([[1, 0, 0], [1, 0, 1], [0, 1, 0], [0, 1, 1], [-1, 0.5, 0]], dtype=np.float32),
    )
    return keyed


def test_questions_are_counted_by_relation_as_right_wrong_or_left_out(keyed):
    scores = score_analogies(
        keyed,
        [
            ("capital", "france", "paris", "italy", "rome"),
            ("capital", "france", "paris", "spain", "madrid"),
            ("nonsense", "france", "paris", "italy", "noise"),
        ],
    )
    # Nearest to italy, without france and paris, is rome
    assert scores == {"capital": (1, 1, 1, 1), "nonsense": (0, 1, 0, 0), "all": (1, 2, 1, 1)}
    assert scores["all"].interval().value == 0.5


def test_no_word_of_the_question_is_an_answer(keyed):
    # b - a + c is nearest to c itself here
    scores = score_analogies(keyed, [("same", "france", "france", "italy", "rome")])
    assert scores["same"].right == 1


def test_a_relation_without_questions_has_no_accuracy(keyed):
    assert score_analogies(keyed, [("gone", "x", "y", "z", "w")])["gone"].interval() is None


def test_questions_are_read_in_word2vecs_format(tmp_path):
    path = tmp_path / "questions.txt"
    path.write_text(": capital\nAthens Greece Oslo Norway\n\n: gender\nhe she his her\n")
    assert read_questions(path) == [
        ("capital", "athens", "greece", "oslo", "norway"),
        ("gender", "he", "she", "his", "her"),
    ]
    path.write_text(": capital\nAthens Greece Oslo\n")
    with pytest.raises(ValueError, match="Line 2 .*'Athens Greece Oslo'"):
        read_questions(path)


ENTRIES = (
    "Easy, a. [Compar. {Easier}; superl. {Easiest}.] 1. At ease.",
    "Walk (w[add]k), v. i. [imp. & p. p. {Walked}; p. pr. & vb. n. {Walking}.] To go.",
    "Child (ch[imac]ld), n.; pl. {Children} (-ren). A son or a daughter.",
    "Quick, a. [Compar. {Quicker}; superl. {Quickest}.] Alive.",
    "Quickly, adv. In a quick manner.",
    "Familly, adv. No adjective is its beginning.",
    "Abaculus, n.; pl. {Abaculi}. A small tile.",
    "Abaculus, n.; pl. {Abaculuses}. Another form.",
    "not an entry [Compar. {Worse}.]",
)


def test_a_dictionarys_heads_name_the_forms_of_words():
    assert dictionary_pairs(ENTRIES) == {
        "comparative": [("easy", "easier"), ("quick", "quicker")],
        "superlative": [("easy", "easiest"), ("quick", "quickest")],
        "past": [("walk", "walked")],
        "participle": [("walk", "walking")],
        "plural": [("child", "children")],
        "adverb": [("quick", "quickly")],
    }


def test_the_questions_are_of_the_pairs_that_the_text_has_most_often():
    pairs = {"past": [("go", "went"), ("see", "saw"), ("sit", "sat"), ("ebb", "ebbed")]}
    counts = {"go": 9, "went": 1, "see": 5, "saw": 5, "sit": 3, "sat": 4}
    expected = [("past", "see", "saw", "sit", "sat"), ("past", "sit", "sat", "see", "saw")]
    assert frequent_questions(pairs, counts, pairs_per_relation=2) == expected
    assert len(frequent_questions(pairs, counts)) == 3 * 2  # "ebb" is not in the text


def test_the_plane_of_the_picture_is_that_of_the_covariance():
    points = np.random.default_rng(0).normal(size=(7, 5)) * [5, 1, 3, 0.5, 0.1]
    places, shares = principal_components(points)
    values, vectors = np.linalg.eigh(np.cov(points.T))
    np.testing.assert_allclose(shares, (values / values.sum())[::-1][:2])
    expected = (points - points.mean(0)) @ vectors[:, ::-1][:, :2]
    np.testing.assert_allclose(abs(places), abs(expected), atol=1e-10)


def test_labels_are_moved_apart_and_no_farther():
    heights = spread_labels(np.array([5.0, 0.0, 0.1, 9.0]), gap=1)
    np.testing.assert_allclose(heights, [5, -0.45, 0.55, 9])


# Recipe


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("word_vectors", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe


@pytest.mark.slow
def test_the_recipe_learns_the_capitals_and_saves_its_vectors(recipe, tmp_path):
    arguments = ["--max_documents", "1500", "--vector_size", "20", "--window", "5", "--glove_epochs", "60"]
    metrics = recipe.main(["--output_dir", str(tmp_path), *arguments])
    for name in recipe.METHODS:
        capital = metrics["accuracy"][name]["capital"]
        assert capital["asked"] == 132 and capital["right"] > 40  # chance is 1 in 200
        path = tmp_path / f"{name.lower().replace(' ', '_')}.txt"
        loaded = gensim.models.KeyedVectors.load_word2vec_format(str(path), binary=False)
        assert len(loaded) == metrics["vocabulary"] and loaded["paris"].shape == (20,)
    assert metrics["huffman"]["probability_sum_error"] < 1e-9
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "finished"
    for file in ("word_vectors.md", "word_vectors.png", "metrics.json"):
        assert (tmp_path / file).exists(), file


@pytest.mark.slow
def test_a_text_without_the_questions_words_shows_neighbours(recipe, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"word{index % 29} word{index % 31} word{index % 7}\n" for index in range(900)))
    metrics = recipe.main(["--output_dir", str(tmp_path / "out"), "--text_file", str(text), "--glove_epochs", "2"])
    assert metrics["accuracy"]["GloVe"]["all"] == {"right": 0, "asked": 0, "left_out": 498, "nearest": 0}
    assert "nearest words to" in (tmp_path / "out" / "word_vectors.md").read_text()


def test_a_text_without_heads_of_entries_is_no_dictionary():
    with pytest.raises(ValueError, match="no head of an entry with a form of its word"):
        dictionary_pairs(["A plain text, which has no entries."])


def test_a_vocabulary_of_a_few_words_is_drawn_whole(tmp_path):
    from hf_evidenceflow.recipes.course.word_vectors import run

    (tmp_path / "text.txt").write_text("red blue green\n" * 20)
    options = ["--methods=glove", "--glove_epochs=1", f"--text_file={tmp_path}/text.txt", f"--output_dir={tmp_path}"]
    assert run.main(options)["vocabulary"] == 3
    assert (tmp_path / "word_vectors.png").exists()
