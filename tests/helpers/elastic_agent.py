"""Runs a worker as torchrun would, but forks its ranks: `python elastic_agent.py <ranks> <worker> <arguments>`."""

import runpy
import sys

from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def run_rank(worker, *arguments):
    sys.argv = [worker, *arguments]
    runpy.run_path(worker, run_name="__main__")


if __name__ == "__main__":
    ranks, worker, *arguments = sys.argv[1:]
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=int(ranks),
        run_id="job",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=3,
        start_method="fork",
    )
    elastic_launch(config, run_rank)(worker, *arguments)
