"""
Makes stories in the manner of ProsQA (Hao et al. 2024, Coconut, arXiv 2412.06769): a search in a graph, told in words.

"Every tarnel is a moskit." is an edge, and "Alex is a tarnel." names the root. The graphs are those of
[`generate_graph_problems`], with nouns of our own for the nodes: two of one make, so that names, places and degrees
say nothing about which of the two nouns at the end is right. Thought t is the set of nouns that breadth-first search
comes to at depth t, of which a discrete chain names one.
"""

import itertools
import random
import re
from collections.abc import Sequence

from .generated import distinct_problems, name_reward, spoil, word_level_tokenizer
from .graph_reachability import check_graphs, draw_search, random_walk, shortest_path
from .text import MARKER


# fmt: off
NOUNS = (
    "tarnel", "moskit", "glurn", "brop", "fendle", "quarb", "snillet", "dorfin", "plimp", "crelm", "velmer",
    "jastin", "horple", "kindra", "wexel", "zibbon", "truvel", "mabbot", "pellin", "gorsk", "lonter", "daskel",
    "firnip", "bluvet", "sorgel", "nackle", "tweb", "hurdin", "cravel", "monkle", "pruster", "vontel", "jebbin",
    "kravet", "lispin", "rundel", "shorven", "drimmet", "flabber", "grontel",
)
# fmt: on
NAMES = ("Alex", "Sam", "Max", "Kim", "Robin", "Toni")

_PIECE = r"####| ?[A-Za-z]+|[^A-Za-z]"
_EDGE = re.compile(r"Every (\w+) is a (\w+)\.")
_MEMBER = re.compile(r"(\w+) is a (\w+)\.")
_ASKED = re.compile(r"Is (\w+) a (\w+) or a (\w+)\?$")

story_reward = name_reward("story_reward")
"""[`Reward`] for the right noun after exactly one marker `####`."""


def generate_graph_stories(
    n: int,
    seed: int = 0,
    nodes: int = 8,
    extra_edges: int = 3,
    depth: int = 3,
    nouns: Sequence[str] = NOUNS,
    sentences: bool = False,
) -> list[dict]:
    """
    Different stories with their solutions.

    Args:
        n, seed, nodes, extra_edges, depth:
            As in [`generate_graph_problems`].
        nouns (`Sequence[str]`, *optional*, defaults to `NOUNS`):
            Words to name the nodes with, at least two per node, lower case and not beginning with a vowel. For a
            pretrained tokenizer pass words that are one token of it with the space before them.
        sentences (`bool`, *optional*, defaults to `False`):
            Whether a step is a sentence of the story, as in ProsQA, and not a noun alone.

    Returns:
        `list[dict]`: rows with `question`, such as `Every glurn is a brop. ... Is Alex a brop or a plimp?`; `prompt`,
        the same text; `answer`, a noun; `candidates`, the two nouns asked about; `steps`, the nouns of a shortest path
        after its root (` brop`, with the space before it) or its sentences; `thought_targets`, per depth `{noun:
        weight}`, uniform over the nouns whose shortest path from the root has so many edges. There are `depth` of
        each, and steps are joined without any separator.

    Raises:
        `ValueError`: if an argument is out of its range, or if the settings do not allow so many different problems.
    """
    check_graphs(n, nodes, extra_edges, depth)
    nouns = list(dict.fromkeys(nouns))
    _check_nouns(nouns, nodes)
    rng = random.Random(seed)
    settings = f"`nodes={nodes}`, `depth={depth}` and {len(nouns)} `nouns`"
    return distinct_problems(n, lambda: _draw(rng, nodes, extra_edges, depth, nouns, sentences), settings)


def split_graph_stories(
    train: int, test: int, validation: int = 0, seed: int = 0, **settings
) -> dict[str, list[dict]]:
    """
    Stories under `"train"`, `"test"` and `"validation"`; no question is in two of them, and those of the test do not
    depend on the other sizes. `settings` are further arguments of [`generate_graph_stories`].
    """
    stories = generate_graph_stories(test + validation + train, seed, **settings)
    held_out = test + validation
    return {"train": stories[held_out:], "test": stories[:test], "validation": stories[test:held_out]}


def make_wandering(problems: Sequence[dict], share: float = 0.5, seed: int = 0) -> list[dict]:
    """
    New rows of the same stories, of which a `share` has a random walk along the edges as its `steps`, as long as the
    shortest path or to a dead end, and as its `answer` the candidate it came to, or else one of the two by chance.
    """
    return spoil(problems, share, seed, _wander)


def build_story_tokenizer(nouns: Sequence[str] = NOUNS):
    """
    A tokenizer for the stories of these `nouns`: each word with the space before it, and the marker `####`, is one
    token. See [`build_word_problem_tokenizer`].
    """
    words = [*NAMES, "Every", "Is", *(f" {word}" for word in (*nouns, *NAMES, "Every", "Is", "is", "a", "or"))]
    pieces = [MARKER, *dict.fromkeys(words), ".", "?", " ", "\n"]
    return word_level_tokenizer([piece.replace(" ", "Ġ").replace("\n", "Ċ") for piece in pieces], _PIECE)


def read_story(question: str) -> tuple[list[tuple[str, str]], str, tuple[str, str]]:
    """Edges, root, and the two candidates in the order of the text, of a question of [`generate_graph_stories`]."""
    name, first, second = _ASKED.search(question).groups()
    return _EDGE.findall(question), dict(_MEMBER.findall(question))[name], (first, second)


def frontiers(edges: Sequence[tuple], root: str, depth: int) -> list[frozenset]:
    """The oracle: per depth from 1 on, the nodes that breadth-first search from the root comes to there."""
    seen, now, found = {root}, {root}, []
    for _ in range(depth):
        now = {target for source, target in edges if source in now} - seen
        seen |= now
        found.append(frozenset(now))
    return found


def _check_nouns(nouns: Sequence[str], nodes: int) -> None:
    if wrong := [noun for noun in nouns if not re.fullmatch("[b-df-hj-np-tv-z][a-z]*", noun)]:
        raise ValueError(f"`nouns` must be lower-case words that follow `a`, got {wrong[0]!r}. Replace it.")
    if len(nouns) < 2 * nodes:
        raise ValueError(f"`nouns` must hold at least {2 * nodes} words for two graphs of {nodes}, got {len(nouns)}.")


def _draw(
    rng: random.Random, nodes: int, extra_edges: int, depth: int, nouns: Sequence[str], sentences: bool
) -> dict | None:
    """A story and its solution; `None` if a graph has no node at the depth."""
    search = draw_search(rng, rng.sample(nouns, 2 * nodes), nodes, extra_edges, depth)
    if search is None:
        return None
    name, other = rng.sample(NAMES, 2)
    facts = [*map(_sentence, search.edges), f"{name} is a {search.root}.", f"{other} is a {search.other_root}."]
    rng.shuffle(facts)
    first, second = search.candidates
    question = " ".join([*facts, f"Is {name} a {first} or a {second}?"])
    path = shortest_path(search.edges, search.root, search.right)
    return {
        "question": question,
        "prompt": question,
        "steps": _steps(path, sentences),
        "answer": search.right,
        "candidates": [first, second],
        "thought_targets": [
            {f" {noun}": 1 / len(found) for noun in sorted(found)}
            for found in frontiers(search.edges, search.root, depth)
        ],
    }


def _wander(problem: dict, rng: random.Random) -> dict:
    edges, root, candidates = read_story(problem["question"])
    nodes = [root, *random_walk(rng, edges, root, len(problem["steps"]))]
    sentences = problem["steps"][0].endswith(".")
    return {
        "steps": _steps(list(itertools.pairwise(nodes)), sentences),
        "answer": nodes[-1] if nodes[-1] in candidates else rng.choice(candidates),
    }


def _steps(path: Sequence[tuple[str, str]], sentences: bool) -> list[str]:
    return [f" {_sentence(edge)}" if sentences else f" {edge[1]}" for edge in path]


def _sentence(edge: tuple[str, str]) -> str:
    return f"Every {edge[0]} is a {edge[1]}."
