"""Trains a causal LM on documents: what several recipes start from when they are given no model."""

import os
from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from hf_evidenceflow.callbacks.evidence_flow_callback import EvidenceFlowCallback
from hf_evidenceflow.data.packing import pack_rows
from hf_evidenceflow.data.token_cache import encode_documents
from hf_evidenceflow.recipes.course.shared.stages import run_stage, stage_settings
from hf_evidenceflow.supervision.config import EvidenceFlowConfig
from hf_evidenceflow.trainers.pretraining_config import PretrainingConfig
from hf_evidenceflow.trainers.pretraining_trainer import PretrainingTrainer


def pretrain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    documents: Sequence[str],
    output_dir: str | os.PathLike,
    steps: int,
    learning_rate: float = 3e-3,
    batch_size: int = 16,
    block_size: int = 64,
    seed: int = 0,
    supervision: EvidenceFlowConfig | None = None,
) -> dict:
    """
    Train on blocks of the documents' tokens, and save model and tokenizer.

    Args:
        model (`PreTrainedModel`):
            A causal LM; trained in place.
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]):
            Its tokenizer.
        documents (`Sequence[str]`):
            The text.
        output_dir (`str` or `os.PathLike`):
            Folder of the model.
        steps (`int`):
            Optimizer steps.
        learning_rate (`float`, *optional*, defaults to `3e-3`):
            Highest learning rate.
        batch_size, block_size (`int`, *optional*, default to `16` and `64`):
            Rows a step, and tokens a row.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the order of the rows.
        supervision ([`EvidenceFlowConfig`], *optional*):
            Layer-wise supervision.

    Returns:
        `dict`: `seconds` of training, and the `log`.

    Raises:
        `ValueError`: if the text does not fill a block.
    """
    settings = stage_settings(output_dir, seed, steps, learning_rate)
    settings |= {"per_device_train_batch_size": batch_size, "eval_strategy": "no"}
    rows = pack_rows(*encode_documents(documents, tokenizer), block_size)
    trainer = PretrainingTrainer(model, PretrainingConfig(**settings), train_dataset=rows, processing_class=tokenizer)
    if supervision is not None:
        EvidenceFlowCallback(supervision).add_to(trainer)
    return run_stage(trainer)
