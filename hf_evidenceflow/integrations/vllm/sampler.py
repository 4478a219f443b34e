"""vLLM's sampler, with the token policy of thoughts and an observer of what was drawn.

Shapes: R requests of a step, V vocabulary.
"""

import torch
from vllm.v1.worker.gpu.sample.sampler import Sampler


class ThinkingSampler(Sampler):
    """Differs from vLLM's sampler in the tokens of thoughts under a token policy, and in telling a model state."""

    @classmethod
    def around(cls, sampler: Sampler, model_state) -> "ThinkingSampler":
        """The sampler that vLLM has made, with its settings and buffers."""
        thinking = cls.__new__(cls)
        vars(thinking).update(vars(sampler))
        thinking.model_state = model_state
        thinking.processed = None
        if model_state.method.reads_distribution:
            thinking.use_flashinfer = False  # it draws without showing the distribution that it cuts
        return thinking

    def sample(self, logits, expanded_idx_mapping, idx_mapping, *args, **kwargs):
        """Differs from vLLM's in the tokens of thoughts that are not drawn."""
        sampled, processed = super().sample(logits, expanded_idx_mapping, idx_mapping, *args, **kwargs)
        self.processed = processed
        config = self.model_state.model.config
        if config.token_policy == "sample":
            return sampled, processed
        if config.token_policy == "argmax":
            forced = processed.argmax(-1)
        else:
            forced = torch.full_like(sampled, config.thinking_placeholder_id)
        return torch.where(self.model_state.may_think(idx_mapping), forced, sampled), processed

    def __call__(self, logits, input_batch):
        output = super().__call__(logits, input_batch)
        processed, self.processed = self.processed, None
        if input_batch.req_ids[0] in self.req_states.req_id_to_index:  # else the engine measures its memory
            tokens, drew = output.sampled_token_ids[:, 0], output.num_sampled > 0
            self.model_state.observe(input_batch, tokens, drew, processed)
        return output
