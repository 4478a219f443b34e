"""Statistics of a mixture of experts in the Trainer's log."""

from ..atomic_write import atomic_write_json
from ..files import read_json
from ..models.router_statistics import RouterStatistics
from ..run_folder.checkpointed_callback import CheckpointedCallback, checkpoint_of


FILE_NAME = "router_statistics_{rank}.json"


class RouterStatisticsCallback(CheckpointedCallback):
    """
    Adds to each training log how the experts were used since the last one: see [`RouterStatistics.summary`].

    Each rank counts its own tokens. The hooks are on the model during forward passes of the training only.

    Raises:
        `ValueError`: when training begins, if the model has no experts.

    Example:

    ```python
    >>> trainer = Trainer(model, args, train_dataset=dataset, callbacks=[RouterStatisticsCallback()])
    >>> trainer.train()  # {"loss": ..., "router_max_load": 2.1, "router_dead_experts": 0.0, ...}
    ```
    """

    def __init__(self):
        self.statistics: RouterStatistics | None = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._close()
        self.statistics = RouterStatistics(model, once=True)
        saved = checkpoint_of(args, state) / FILE_NAME.format(rank=args.process_index)
        if state.global_step and saved.exists():
            self.statistics.load_counts(read_json(saved), args.device)

    def on_step_begin(self, args, state, control, **kwargs):
        self.statistics.attach()

    def on_substep_end(self, args, state, control, **kwargs):
        self.statistics.attach()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.statistics is not None and logs is not None and "loss" in logs:
            summary = self.statistics.pop()
            logs.update(summary)
            state.log_history[-1].update(summary)

    def write_files(self, checkpoint, args):
        if self.statistics is not None:
            path = checkpoint / FILE_NAME.format(rank=args.process_index)
            atomic_write_json(path, self.statistics.counts())

    def on_train_end(self, args, state, control, **kwargs):
        self._close()

    def _close(self):
        if self.statistics is not None:
            self.statistics.remove()
        self.statistics = None
