"""Makes problems of search in a graph: which of two nodes can be reached, in GSM8K's format and without any download.

In the manner of ProsQA (Hao et al. 2024, Coconut, arXiv 2412.06769). A problem holds two graphs made by one rule and
asks from the root of one of them; the wrong answer lies in the other graph, as deep below its root. Degrees, names and
places in the text thus say nothing about the answer, and only the edges do.
"""

import random
from collections import deque
from collections.abc import Sequence

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
    for name, value, least in (("n", n, 0), ("depth", depth, 1), ("nodes", nodes, depth + 1)):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}.")
    if extra_edges < 0:
        raise ValueError(f"`extra_edges` must be at least 0, got {extra_edges}.")
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


def shortest_path(edges: Sequence[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]] | None:
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


def _draw(rng: random.Random, nodes: int, extra_edges: int, depth: int, names: int) -> dict | None:
    """A question and its solution; `None` if a graph has no node at the depth."""
    named = rng.sample(range(names), 2 * nodes)
    edges, candidates = [], []
    for labels in (named[:nodes], named[nodes:]):
        # Parents come before their children, so that there is no cycle
        graph = {(labels[rng.randrange(child)], labels[child]) for child in range(1, nodes)}
        graph |= {tuple(labels[node] for node in sorted(rng.sample(range(nodes), 2))) for _ in range(extra_edges)}
        graph = sorted(graph)
        edges += graph
        paths = [shortest_path(graph, labels[0], node) for node in labels]
        deep = [node for node, path in zip(labels, paths) if len(path) == depth]
        if not deep:
            return None
        candidates.append(rng.choice(deep))
    rng.shuffle(edges)  # before the path is taken: of several shortest ones it must not be that of an order by name
    asked = rng.randrange(2)
    root, right = named[asked * nodes], candidates[asked]
    rng.shuffle(candidates)
    question = ";".join(_text(edge) for edge in edges) + f"?{root}:{candidates[0]},{candidates[1]}"
    answer = "\n".join([*map(_text, shortest_path(edges, root, right)), f"{MARKER} {right}"])
    return {"question": question, "answer": answer}


def _walk(problem: dict, rng: random.Random) -> dict:
    edges, node, candidates = read_graph_question(problem["question"])
    lines = []
    for _ in range(len(problem["answer"].split("\n")) - 1):
        children = [target for source, target in edges if source == node]
        if not children:
            break
        child = rng.choice(children)
        lines.append(_text((node, child)))
        node = child
    answer = node if node in candidates else rng.choice(candidates)
    return {"answer": "\n".join([*lines, f"{MARKER} {answer}"])}


def _text(edge: tuple[int, int]) -> str:
    return f"{edge[0]}>{edge[1]}"
