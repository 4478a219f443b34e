"""Where the published test sets of tasks are, as data: what an evaluation reads, and where its result belongs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """
    A published test set.

    Args:
        dataset, revision, split (`str`):
            Its data set on the Hub, the commit that was looked at, and the split.
        problems (`int`):
            Number of problems.
        task_id (`str`, *optional*):
            The task's name on the leaderboard of the data set, from its `eval.yaml`; `None`: there is none.
    """

    dataset: str
    revision: str
    split: str
    problems: int
    task_id: str | None = None

    @property
    def name(self) -> str:
        """Data set and revision as the loaders take them."""
        return f"{self.dataset}@{self.revision}"


BENCHMARKS = {
    "gsm8k": Benchmark("openai/gsm8k", "740312add88f781978c0658806c59bc2815b9866", "test", 1319, "gsm8k"),
    "gsm8k_platinum": Benchmark("madrylab/gsm8k-platinum", "e762492455a1cf7967de89f05b6bef72fc713b66", "test", 1209),
    "math_500": Benchmark(
        "HuggingFaceH4/MATH-500", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be", "test", 500, "math_500"
    ),
    "aime25": Benchmark("math-ai/aime25", "563bb8404243c5f09de6ec262f2db674fe5bce9b", "test", 30),
    "aime26": Benchmark(
        "MathArena/aime_2026", "10b4e45b7a503075d4da8a0d57916a4f06ce6bd2", "train", 30, "MathArena/aime_2026"
    ),
    "gpqa_diamond": Benchmark("Idavidrein/gpqa", "633f5ee89ab8ad4522a9f850766b73f62147ffdd", "train", 198, "diamond"),
    "arc_challenge": Benchmark("allenai/ai2_arc", "210d026faf9955653af8916fad021475a3f00453", "test", 1172),
}
