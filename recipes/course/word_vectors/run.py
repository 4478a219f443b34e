"""
Word vectors in three ways, on the same text, with the same vocabulary: skip-gram with negative sampling, skip-gram
with a hierarchical softmax on a Huffman tree, and GloVe.

```bash
python recipes/course/word_vectors/run.py --config recipes/configs/course/word_vectors.yaml
```

About 16 seconds on one CPU core, offline, on stories of a small world in which countries have
capitals and languages, there are kings and queens, and adjectives have degrees. The vectors are asked "france is to
paris as italy is to ...". On text of your own, questions whose words are missing are left out, and nearest neighbours
are shown:

```bash
python recipes/course/word_vectors/run.py --text_file wiki.train.txt --min_count 5 --sample 1e-3 --vector_size 100 \
    --glove_batch_size 16384 --x_max 10 --questions_file questions-words.txt --output_dir outputs/wiki-vectors
```

Skip-gram is gensim's, on one thread, with a hash of its own, so that two runs give the same vectors. GloVe is written
here: weighted least squares on the co-occurrence counts, with AdaGrad. For the Huffman tree, the probabilities of all
words are computed from gensim's codes, as a check that they sum to 1.

Outputs, in `output_dir`: `word_vectors.md` (the tables), `word_vectors.png`, `metrics.json`, `run.json`, and each
method's vectors in word2vec's text format (`negative_sampling.txt`, `hierarchical_softmax.txt`, `glove.txt`), which
`gensim.models.KeyedVectors.load_word2vec_format` reads.

Sources: Mikolov et al. 2013 (1301.3781; negative sampling and hierarchical softmax: 1310.4546); Pennington et al. 2014
(GloVe, aclanthology.org/D14-1162); Levy and Goldberg 2014 (3CosAdd, aclanthology.org/W14-1618).
"""

import time
from dataclasses import dataclass
from typing import ClassVar

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

import numpy as np
import torch

from hf_evidenceflow.data.text import load_documents
from hf_evidenceflow.recipes.course.shared.arguments import CourseArguments, course_documents
from hf_evidenceflow.recipes.course.shared.corpus import COUNTRIES, analogies
from hf_evidenceflow.recipes.course.shared.methods_option import chosen_methods
from hf_evidenceflow.recipes.course.shared.recipe import course_run, require_course_package
from hf_evidenceflow.recipes.course.word_vectors.analogies import (
    ALL_RELATIONS,
    neighbour_rows,
    read_questions,
    score_analogies,
)
from hf_evidenceflow.recipes.course.word_vectors.cooccurrence import count_cooccurrences
from hf_evidenceflow.recipes.course.word_vectors.dictionary_questions import dictionary_pairs, frequent_questions
from hf_evidenceflow.recipes.course.word_vectors.glove import glove_vectors, train_glove
from hf_evidenceflow.recipes.course.word_vectors.huffman import huffman_probabilities, huffman_summary
from hf_evidenceflow.recipes.course.word_vectors.skip_gram import (
    noise_distribution,
    text_words,
    train_skip_gram,
    word_counts,
)
from hf_evidenceflow.recipes.course.word_vectors.vectors_plot import plot_vector_rows, vector_rows
from hf_evidenceflow.report.tables import markdown_table
from hf_evidenceflow.run_folder.exit_codes import run_recipe


METHODS = ("negative sampling", "hierarchical softmax", "GloVe")


@dataclass
class WordVectorsArguments(CourseArguments):
    """
    Sizes of the vectors. Further arguments are those of [`~recipes.course.shared.arguments.CourseArguments`].

    Args:
        vector_size (`int`, *optional*, defaults to `50`):
            Numbers in a vector.
        window (`int`, *optional*, defaults to `10`):
            Farthest distance of two words, for all methods.
        min_count (`int`, *optional*, defaults to `2`):
            Rarer words are left out.
        sample (`float`, *optional*, defaults to `1e-2`):
            Skip-gram thins out words that are more frequent than this; 1e-3 is usual for real text, but in a world of
            two hundred words nearly every word is more frequent than that.
        epochs (`int`, *optional*, defaults to `5`):
            Passes of skip-gram over the text.
        negative (`int`, *optional*, defaults to `5`):
            Noise words for each pair.
        ns_exponent (`float`, *optional*, defaults to `0.75`):
            Power of the counts that noise words are drawn by.
        glove_epochs (`int`, *optional*, defaults to `100`):
            Passes of GloVe over the table of counts.
        x_max (`float`, *optional*, defaults to `100`):
            Count from which GloVe weighs a pair in full.
        glove_batch_size (`int`, *optional*, defaults to `1024`):
            Pairs of a step of GloVe; more of them are faster on a large vocabulary.
        questions_file (`str`, *optional*):
            Analogies in the format of `questions-words.txt`; `None`: those of the small world.
        dictionary_file (`str`, *optional*):
            Text of Webster's dictionary, whose entries' heads are made into analogies: degrees of adjectives, adverbs,
            forms of verbs, plurals.
        pairs_per_relation (`int`, *optional*, defaults to `30`):
            Pairs of each relation of the dictionary: those that are most frequent in the text.
        methods (`list[str]`, *optional*):
            Methods to run, by their names or parts of them; `None`: all.
    """

    may_be_zero: ClassVar[frozenset[str]] = CourseArguments.may_be_zero | {"sample", "ns_exponent"}

    output_dir: str = "outputs/word_vectors"
    vector_size: int = 50
    window: int = 10
    min_count: int = 2
    sample: float = 1e-2
    epochs: int = 5
    negative: int = 5
    ns_exponent: float = 0.75
    glove_epochs: int = 100
    x_max: float = 100.0
    glove_batch_size: int = 1024
    questions_file: str | None = None
    dictionary_file: str | None = None
    pairs_per_relation: int = 30
    methods: list[str] | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.questions_file is not None and self.dictionary_file is not None:
            raise ValueError(
                f"Give `questions_file` ({self.questions_file!r}) or `dictionary_file` ({self.dictionary_file!r}), "
                "not both."
            )
        self.methods = chosen_methods(METHODS, self.methods)


def load_questions(args: WordVectorsArguments, counts: dict[str, int]) -> list:
    """The analogies of the file, the dictionary or the small world."""
    if args.dictionary_file is not None:
        pairs = dictionary_pairs(load_documents(args.dictionary_file))
        return frequent_questions(pairs, counts, args.pairs_per_relation)
    return read_questions(args.questions_file) if args.questions_file else analogies()


def train_vectors(args: WordVectorsArguments, sentences: list[list[str]], words: list[str]) -> tuple[dict, dict, dict]:
    """Vectors and seconds by method, and the models of skip-gram."""
    models, vectors, seconds = {}, {}, {}
    for name, hierarchical in zip(METHODS, (False, True)):
        if name not in args.methods:
            continue
        start = time.perf_counter()
        models[name] = train_skip_gram(
            sentences,
            args.vector_size,
            args.window,
            args.min_count,
            args.epochs,
            args.seed,
            sample=args.sample,
            negative=args.negative,
            ns_exponent=args.ns_exponent,
            hierarchical_softmax=hierarchical,
        )
        vectors[name], seconds[name] = models[name].wv, time.perf_counter() - start
        print(f"{name}: {seconds[name]:.1f} s", flush=True)

    if "GloVe" not in args.methods:
        return vectors, seconds, models
    start = time.perf_counter()
    counts = count_cooccurrences(sentences, {word: index for index, word in enumerate(words)}, args.window)
    parameters, losses = train_glove(
        counts, args.vector_size, args.glove_epochs, args.x_max, batch_size=args.glove_batch_size, seed=args.seed
    )
    keyed = require_course_package("gensim", "GloVe's vectors").models.KeyedVectors(args.vector_size)
    keyed.add_vectors(words, glove_vectors(parameters).numpy())
    vectors["GloVe"], seconds["GloVe"] = keyed, time.perf_counter() - start
    print(f"GloVe: {seconds['GloVe']:.1f} s, {counts.nnz} pairs, loss {losses[0]:.3f} to {losses[-1]:.3f}", flush=True)
    return vectors, seconds, models


def accuracy_table(scores: dict, seconds: dict) -> str:
    """A row a relation and one for the time, a column a method."""
    rows = []
    for relation, score in next(iter(scores.values())).items():
        cells = [by_relation[relation].interval() for by_relation in scores.values()]
        shown = ["" if cell is None else f"{cell.value:.2f} [{cell.low:.2f}, {cell.high:.2f}]" for cell in cells]
        rows.append([relation, str(score.asked), str(score.left_out), *shown])
    total = [by_relation[ALL_RELATIONS] for by_relation in scores.values()]
    nearest = [f"{score.nearest / score.asked:.2f}" if score.asked else "" for score in total]
    rows.append(["all, by the word nearest to the third", str(total[0].asked), "", *nearest])
    rows.append(["seconds", "", "", *(f"{seconds[name]:.1f}" for name in scores)])
    return markdown_table(["analogies", "asked", "left out", *scores], rows)


def tree_table(models: dict) -> tuple[str, dict]:
    """What stands in for the softmax, in numbers: the tree's codes and the noise's distribution."""
    tree, counts = huffman_summary(models["hierarchical softmax"]), models["negative sampling"].wv
    shares = np.array([counts.get_vecattr(word, "count") for word in counts.index_to_key], dtype=float)
    shares /= shares.sum()
    noise = noise_distribution(models["negative sampling"])
    hierarchical = models["hierarchical softmax"]
    sums = [huffman_probabilities(hierarchical, vector).sum() for vector in hierarchical.wv.vectors[:100]]
    worst = float(np.abs(np.array(sums) - 1).max())
    rows = [
        ["Huffman tree: decisions for a word, on average", f"{tree.mean_length:.2f}"],
        ["entropy of the words (no code is shorter), bits", f"{tree.entropy:.2f}"],
        ["depth of a balanced tree, log2 of the vocabulary", f"{tree.balanced_length:.2f}"],
        [f"largest error of the sum of all probabilities, {len(sums)} words", f"{worst:.0e}"],
        [f"share of `{counts.index_to_key[0]}` in the text", f"{shares[0]:.4f}"],
        ["its share among the noise words", f"{noise[0]:.4f}"],
        [f"share of `{counts.index_to_key[-1]}` in the text", f"{shares[-1]:.6f}"],
        ["its share among the noise words", f"{noise[-1]:.6f}"],
    ]
    return markdown_table(["in place of the softmax", ""], rows), {**tree._asdict(), "probability_sum_error": worst}


def neighbour_table(vectors: dict, asked: int) -> str:
    """Neighbours of some words from the middle of the vocabulary, which are neither function words nor rare."""
    frequent = next(iter(vectors.values())).index_to_key
    words = frequent[min(100, len(frequent) // 3) :: max(1, len(frequent) // 40)][:asked]
    columns = [[", ".join(row) for row in neighbour_rows(vectors[name], words)] for name in vectors]
    return markdown_table(["nearest words to", *vectors], [list(row) for row in zip(words, *columns)])


def main(argv: list[str] | None = None) -> dict:
    (args,) = RecipeParser(WordVectorsArguments, __doc__).parse_args_and_config(argv)
    with course_run("word_vectors", args) as run:
        sentences = [text_words(document) for document in course_documents(args)]
        counts = word_counts(sentences, args.min_count)
        questions, words = load_questions(args, counts), list(counts)
        vectors, seconds, models = train_vectors(args, sentences, words)
        for name in vectors:
            path = run.folder / f"{name.lower().replace(' ', '_')}.txt"
            vectors[name].save_word2vec_format(str(path), binary=False)

        scores = {name: score_analogies(vectors[name], questions) for name in vectors}
        tables, tree_metrics = [accuracy_table(scores, seconds)], {}
        if len(models) == 2:
            tree, tree_metrics = tree_table(models)
            tables.append(tree)
        if args.text_file or args.dataset_name:
            tables.append(neighbour_table(vectors, asked=8))
        pairs = [pair for *pair, _ in COUNTRIES if all(word in counts for word in pair)]
        run.draw(plot_vector_rows, vector_rows(vectors, pairs, words[20:60] or words, scores))
        tokens = sum(map(len, sentences))
        note = (
            f"{len(sentences)} texts of {tokens} words, a vocabulary of {len(words)}, vectors of {args.vector_size} "
            f"numbers, a window of {args.window}, one seed: no ranking of the methods. The intervals take the "
            "questions as independent, though the questions of a relation share their words: they are too narrow. "
            f"A guess is right in 1 of {max(1, len(words) - 3)}."
        )
        metrics = {
            "vocabulary": len(words),
            "words": tokens,
            "accuracy": {
                name: {relation: score._asdict() for relation, score in by_relation.items()}
                for name, by_relation in scores.items()
            },
            "training_seconds": seconds,
            "huffman": tree_metrics,
        }
        return run.finish(tables, note, metrics)


if __name__ == "__main__":
    torch.set_num_threads(1)  # GloVe's small steps gain nothing from a second
    run_recipe(main)
