"""The passes of an update over rows of like length together.

Shapes: B rows, P prompt columns, C completion columns.
"""

import functools

import torch

from .length_buckets import LengthBucket, fit_columns, join_buckets, length_buckets


_ROWS_A_BUCKET = 8


class BucketedUpdateMixin:
    """
    Put before [`~trl.GRPOTrainer`], whose arguments have `length_buckets`; `_thinking_of` tells the thinking states
    and mask of the batch at hand for a model's pass, or `None`.
    """

    _buckets: list[LengthBucket]  # of the last call

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, **kwargs
    ):
        """
        Differs from GRPOTrainer in computing rows of like length together, and in the inputs of a model that thinks.
        """
        columns, thinking = logits_to_keep, self._thinking_of(model)
        count = self.args.length_buckets or -(-len(input_ids) // _ROWS_A_BUCKET)
        if batch_size is not None:
            count = max(count, -(-len(input_ids) // batch_size))
        self._buckets = buckets = length_buckets(attention_mask, columns, count)
        results = []
        for bucket in buckets:
            thinks = model
            if thinking is not None:
                states, mask = (fit_columns(tensor, bucket.completion_columns)[bucket.rows] for tensor in thinking)
                thinks = functools.partial(model, thinking_states=states, thinking_mask=mask)
            ids, attention = (tensor[bucket.rows, bucket.columns] for tensor in (input_ids, attention_mask))
            results.append(
                super()._get_per_token_logps_and_entropies(thinks, ids, attention, bucket.completion_columns, **kwargs)
            )
        logps, entropies, aux_losses = zip(*results)
        logps = join_buckets(buckets, logps, columns)
        entropies = None if entropies[0] is None else join_buckets(buckets, entropies, columns)
        return logps, entropies, None if aux_losses[0] is None else torch.stack(aux_losses).mean()
