"""LayerSkip's layer dropout as a callback of transformers' Trainer and TRL's trainers."""

from transformers import TrainerCallback

from ..supervision.layer_dropout import LayerDropout, check_layer_dropout


class LayerDropoutCallback(TrainerCallback):
    """
    Lets each row of a training batch skip each decoder layer with a rate that rises with depth.

    The hooks are on the model only from the start of a micro-batch to the end of its forward pass, so that evaluation,
    the saved model and inference are those of a run without it. Goes with [`EvidenceFlowCallback`], gradient
    checkpointing and LoRA. The share of skipped rows comes into the logs as `layer_dropout/skipped`.

    Args:
        max_rate (`float`, *optional*, defaults to `0.1`):
            Rate of the last layer, in [0, 1); the first is never skipped.
        curriculum (`str`, *optional*, defaults to `"constant"`):
            `"constant"`, for checkpoints, or `"exponential"`: from 0 at the first step, for new models.

    Raises:
        ValueError: if a setting is out of range; when training begins, if the model has routed experts.

    Source: LayerSkip, Elhoushi et al. 2024, arXiv 2404.16710, section 4.1.1.

    Example:

    ```python
    >>> supervision = EvidenceFlowCallback(
    ...     objective="cross_entropy", layer_weights="layer_skip", weight=0.2, layer_curriculum="rotational:8"
    ... )
    >>> trainer = Trainer(model, args, train_dataset=dataset, callbacks=[LayerDropoutCallback(0.1), supervision])
    ```
    """

    def __init__(self, max_rate: float = 0.1, curriculum: str = "constant"):
        check_layer_dropout(max_rate, curriculum)
        self.max_rate = max_rate
        self.curriculum = curriculum
        self.dropout: LayerDropout | None = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._close()
        self.dropout = LayerDropout(model, self.max_rate, self.curriculum, state.max_steps, args.seed, once=True)

    def on_step_begin(self, args, state, control, **kwargs):
        if self.dropout is not None:
            self.dropout.start_step(state.global_step)
            self.dropout.attach()

    def on_substep_end(self, args, state, control, **kwargs):
        if self.dropout is not None:
            self.dropout.attach()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.dropout is not None and logs is not None and "loss" in logs:
            skipped = {"layer_dropout/skipped": self.dropout.skipped}
            logs.update(skipped)
            state.log_history[-1].update(skipped)

    def on_train_end(self, args, state, control, **kwargs):
        self._close()

    def _close(self):
        if self.dropout is not None:
            self.dropout.remove()
        self.dropout = None
