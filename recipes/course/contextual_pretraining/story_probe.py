"""What a word's vector knows about the text around it: a linear probe on frozen vectors.

Two questions to stories of the small world, each about a word that says nothing about the answer by itself: at `the`
in "he saw the bridge and ...", which country is the story about? At the animal in "the horse eats hay ...", is its
owner a man or a woman?

Shapes: N examples, L layers, H size, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from hf_evidenceflow.evaluation.statistics import Interval, proportion_interval
from hf_evidenceflow.recipes.course.contextual_pretraining.scalar_mix import ScalarMix
from hf_evidenceflow.recipes.course.shared.corpus import COUNTRIES, PEOPLE


class StoryExample(NamedTuple):
    """
    A word in a story and what is to be said about it.

    Args:
        words (`list[str]`):
            Words of the story.
        place (`int`):
            Number of the word.
        label (`int`):
            Answer.
    """

    words: list[str]
    place: int
    label: int


@dataclass
class ProbeResult:
    """
    A trained probe on held-out examples.

    Args:
        accuracy ([`~evaluation.statistics.Interval`]):
            Accuracy with Wilson's 95 % interval.
        weights (`list[float]`):
            Weights s_j of the layers.
    """

    accuracy: Interval
    weights: list[float]


def country_examples(stories: Sequence[str]) -> list[StoryExample]:
    """
    The article behind "saw" in each journey, and the number of the country.

    Args:
        stories (`Sequence[str]`):
            Stories of [`~recipes.course.shared.corpus.generate_corpus`].

    Returns:
        `list[StoryExample]`: one for each story of a journey.
    """
    capitals = {capital: index for index, (_, capital, _) in enumerate(COUNTRIES)}
    examples = []
    for story in stories:
        words = story.split()
        found = [capitals[word] for word in words if word in capitals]
        if found and "saw" in words:
            examples.append(StoryExample(words, words.index("saw") + 1, found[0]))
    return examples


def owner_examples(stories: Sequence[str]) -> list[StoryExample]:
    """
    The animal before "eats", and whether its owner is a woman.

    Args:
        stories (`Sequence[str]`):
            Stories of [`~recipes.course.shared.corpus.generate_corpus`].

    Returns:
        `list[StoryExample]`: one for each story of an animal.
    """
    women = {woman for _, woman in PEOPLE}
    examples = []
    for story in stories:
        words = story.split()
        if "eats" in words:
            examples.append(StoryExample(words, words.index("eats") - 1, int(words[1] in women)))
    return examples


def majority_accuracy(train: Sequence[int], test: Sequence[int]) -> Interval:
    """
    Accuracy of always saying what is most frequent in training.

    Args:
        train, test (`Sequence[int]`):
            Labels.

    Returns:
        [`~evaluation.statistics.Interval`]: accuracy with Wilson's 95 % interval.
    """
    most = max(sorted(set(train)), key=list(train).count)
    return proportion_interval(list(test).count(most), len(test))


def train_probe(
    train: torch.Tensor,
    train_labels: torch.Tensor,
    test: torch.Tensor,
    test_labels: torch.Tensor,
    steps: int = 300,
    weight_decay: float = 1e-3,
    seed: int = 0,
) -> ProbeResult:
    """
    Train a linear classifier on a scalar mix of layers, whose weights are learnt with it.

    Each layer is brought to mean 0 and variance 1 over the training examples first, so that its weight says how much
    it is used and not how large it is.

    Args:
        train, test (`torch.Tensor` of shapes `(N, L, H)`):
            Vectors; L = 1 is a probe of a single layer.
        train_labels, test_labels (`torch.Tensor` of shapes `(N,)`):
            Labels in [0, K).
        steps (`int`, *optional*, defaults to `300`):
            Steps of Adam on all examples.
        weight_decay (`float`, *optional*, defaults to `1e-3`):
            L2 penalty on the classifier.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the classifier; the global random state is left as it was.

    Returns:
        [`ProbeResult`]: accuracy on `test`, and the weights of the layers.
    """
    mean, deviation = train.mean(0, keepdim=True), train.std(0, keepdim=True) + 1e-5
    train, test = (train - mean) / deviation, (test - mean) / deviation
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        mix, classifier = ScalarMix(train.shape[1]), nn.Linear(train.shape[2], classes)
    optimizer = torch.optim.Adam([*mix.parameters(), *classifier.parameters()], lr=0.03)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(classifier(mix(train)), train_labels)
        loss = loss + weight_decay * classifier.weight.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        right = int((classifier(mix(test)).argmax(-1) == test_labels).sum())
        return ProbeResult(proportion_interval(right, len(test_labels)), mix.weights.tolist())
