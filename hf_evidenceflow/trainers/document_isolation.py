"""Checks that a model keeps documents apart that were packed into one row."""

import torch

from ..data.packing import TokenRows


# Largest difference of the logits, relative to their largest value, between a document in a row and the same alone
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
LOW_PRECISION_TOLERANCE = 5e-2


def check_document_isolation(model, rows: TokenRows) -> None:
    """
    Compares a document's logits in a packed row, whose `position_ids` start at 0 in each document, with those of the
    document alone; if they differ, the documents see each other, a `ValueError`. A model that takes no positions, or
    has a recurrent state, would train on mixed documents without a word.
    """
    positions = rows.columns["position_ids"]
    row, start = next(((r, s) for r, line in enumerate(positions) for s in (line == 0).nonzero()[0] if s > 0), (0, 0))
    if start == 0:
        return  # each row is one document
    batch = {name: value[None].to(model.device) for name, value in rows[row].items() if name != "labels"}
    alone = {name: value[:, start:] for name, value in batch.items()}
    training = model.training
    model.eval()
    with torch.no_grad():
        together = model(**batch, use_cache=False).logits[:, start:]
        alone = model(**alone, use_cache=False).logits
    model.train(training)
    difference = ((together - alone).abs().max() / alone.abs().max()).item()
    if difference > TOLERANCE.get(together.dtype, LOW_PRECISION_TOLERANCE):
        raise ValueError(
            f"{type(model).__name__} lets the documents of a row see each other: the logits of a document differ by "
            f"{difference:.1%} from those of the document alone. Take `packing=blocks` or `none`, or the attention "
            "implementation `sdpa` or `eager`."
        )
