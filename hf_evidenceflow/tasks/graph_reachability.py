"""Makes problems of search in a graph: which of two nodes can be reached, in GSM8K's format and without any download.

In the manner of ProsQA (Hao et al. 2024, Coconut, arXiv 2412.06769). A problem holds two graphs made by one rule and
asks from the root of one of them; the wrong answer lies in the other graph, as deep below its root. Degrees, names and
places in the text thus say nothing about the answer, and only the edges do.
"""

import itertools
import random
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from .generated import distinct_problems, hold_out, spoil, word_level_tokenizer
from .text import MARKER


_PIECE = r"[0-9]+|##|[^0-9]"  # a node is one token, its name being no quantity


def generate_graph_problems(
    n: int, seed: int = 0, nodes: int = 6, extra_edges: int = 2, depth: int = 3, names: int = 20
) -> list[dict]:
    """
    Different search problems with their solutions, as rows with `question` and `answer` in the format of GSM8K.

    A question lists the edges of two graphs, then the root and the two candidates: `3>7;12>4;...?3:9,4`. A solution
    has one line per edge of a shortest path, then the marker and the node that can be reached: `3>7`, `7>9`, `#### 9`.

    Args:
        n (`int`):
            Number of problems.
        seed (`int`, *optional*, defaults to `0`):
            The same seed gives the same problems, and the first of a longer list.
        nodes (`int`, *optional*, defaults to `6`):
            Nodes of each of the two graphs, above `depth`.
        extra_edges (`int`, *optional*, defaults to `2`):
            Most edges of each graph on top of those of its tree; one drawn twice counts once.
        depth (`int`, *optional*, defaults to `3`):
            Edges on the shortest path from a root to its candidate.
        names (`int`, *optional*, defaults to `20`):
            Numbers to name the nodes with, from 0; at least two per node.

    Raises:
        `ValueError`: if an argument is out of its range, or if the settings do not allow so many different problems.
    """
    check_graphs(n, nodes, extra_edges, depth)
    if names < 2 * nodes:
        raise ValueError(f"`names` must be at least {2 * nodes} for two graphs of {nodes} nodes, got {names}.")
    rng = random.Random(seed)
    settings = f"`nodes={nodes}`, `depth={depth}` and `names={names}`"
    return distinct_problems(n, lambda: _draw(rng, nodes, extra_edges, depth, names), settings)


def split_graph_problems(train: int, test: int, seed: int = 0, **settings) -> dict[str, list[dict]]:
    """
    Problems under `"train"` and `"test"`; no question is in both, and the test problems do not depend on how many
    there are for training. `settings` are further arguments of [`generate_graph_problems`].
    """
    return hold_out(generate_graph_problems(train + test, seed, **settings), test)


def make_careless(problems: Sequence[dict], share: float = 0.6, seed: int = 0) -> list[dict]:
    """
    New rows of the same problems, but a `share` of the solutions walks at random where it should search.

    Such a walk follows the edges from the root as many steps as the shortest path has, or to a dead end, and then
    names one of the two candidates by chance unless it has come to one. A model warmed up on them knows format and
    edges, which is what RL needs to begin with.
    """
    return spoil(problems, share, seed, _walk)


def build_graph_tokenizer(names: int = 20):
    """
    A tokenizer for the problems of [`generate_graph_problems`] with so many `names`: each node is one token, and the
    marker `####` is the token `##` twice. See [`build_word_problem_tokenizer`].
    """
    return word_level_tokenizer([*map(str, range(names)), "##", *">;?:,", "Ġ", "Ċ"], _PIECE)


def read_graph_question(question: str) -> tuple[list[tuple[int, int]], int, tuple[int, int]]:
    """Edges, root, and the two candidates in the order of the text, of a question of [`generate_graph_problems`]."""
    edges, _, asked = question.partition("?")
    root, _, candidates = asked.partition(":")
    first, second = map(int, candidates.split(","))
    return [tuple(map(int, edge.split(">"))) for edge in edges.split(";")], int(root), (first, second)


def shortest_path(edges: Sequence[tuple], start: Any, end: Any) -> list[tuple] | None:
    """Edges of a shortest path from `start` to `end` by breadth-first search; `None` if there is no path."""
    came_from, queue = {start: None}, deque([start])
    while queue and end not in came_from:
        node = queue.popleft()
        for source, target in edges:
            if source == node and target not in came_from:
                came_from[target] = node
                queue.append(target)
    if end not in came_from:
        return None
    path = []
    while came_from[end] is not None:
        path.append((came_from[end], end))
        end = came_from[end]
    return path[::-1]


class Search(NamedTuple):
    """A search problem: edges in the order of the text, both roots, the two candidates, and which can be reached."""

    edges: list[tuple]
    root: Any
    other_root: Any
    candidates: list
    right: Any


def draw_search(rng: random.Random, labels: Sequence, nodes: int, extra_edges: int, depth: int) -> Search | None:
    """A problem of two graphs whose nodes have these `labels`; `None` if a graph has no node at the depth."""
    edges, candidates = [], []
    for named in (labels[:nodes], labels[nodes:]):
        # Parents come before their children, so that there is no cycle
        graph = {(named[rng.randrange(child)], named[child]) for child in range(1, nodes)}
        graph |= {tuple(named[node] for node in sorted(rng.sample(range(nodes), 2))) for _ in range(extra_edges)}
        graph = sorted(graph)
        edges += graph
        paths = [shortest_path(graph, named[0], node) for node in named]
        deep = [node for node, path in zip(named, paths) if len(path) == depth]
        if not deep:
            return None
        candidates.append(rng.choice(deep))
    rng.shuffle(edges)  # before the path is taken: of several shortest ones it must not be that of an order by name
    asked = rng.randrange(2)
    root, other_root, right = labels[asked * nodes], labels[(1 - asked) * nodes], candidates[asked]
    rng.shuffle(candidates)
    return Search(edges, root, other_root, candidates, right)


def random_walk(rng: random.Random, edges: Sequence[tuple], node: Any, length: int) -> list:
    """The nodes after `node` on a walk of so many edges, or to a dead end."""
    walk = []
    for _ in range(length):
        children = [target for source, target in edges if source == node]
        if not children:
            break
        node = rng.choice(children)
        walk.append(node)
    return walk


def check_graphs(n: int, nodes: int, extra_edges: int, depth: int) -> None:
    """A `ValueError` for sizes out of their range."""
    for name, value, least in (("n", n, 0), ("depth", depth, 1), ("nodes", nodes, depth + 1)):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}.")
    if extra_edges < 0:
        raise ValueError(f"`extra_edges` must be at least 0, got {extra_edges}.")


def _draw(rng: random.Random, nodes: int, extra_edges: int, depth: int, names: int) -> dict | None:
    """A question and its solution; `None` if a graph has no node at the depth."""
    search = draw_search(rng, rng.sample(range(names), 2 * nodes), nodes, extra_edges, depth)
    if search is None:
        return None
    first, second = search.candidates
    path = shortest_path(search.edges, search.root, search.right)
    return {
        "question": ";".join(map(_text, search.edges)) + f"?{search.root}:{first},{second}",
        "answer": "\n".join([*map(_text, path), f"{MARKER} {search.right}"]),
    }


def _walk(problem: dict, rng: random.Random) -> dict:
    edges, root, candidates = read_graph_question(problem["question"])
    nodes = [root, *random_walk(rng, edges, root, len(problem["answer"].split("\n")) - 1)]
    answer = nodes[-1] if nodes[-1] in candidates else rng.choice(candidates)
    return {"answer": "\n".join([*map(_text, itertools.pairwise(nodes)), f"{MARKER} {answer}"])}


def _text(edge: tuple[int, int]) -> str:
    return f"{edge[0]}>{edge[1]}"
