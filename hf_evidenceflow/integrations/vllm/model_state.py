"""What each request's slot carries from step to step, and how it gets into the inputs of the next one.

Nothing here waits for the device, so that it is right under async scheduling too; only the return from a preemption
reads records on the host.

Shapes: R requests of a step, C completion tokens, H hidden size, V vocabulary.
"""

import torch
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from .records import HostCopies, RecordStore
from .sampler import ThinkingSampler


class ThinkingModelState(DefaultModelState):
    """
    State `(slots, H)` and state of the automaton `(slots,)` behind each request's last token; the inputs of a step are
    a buffer of embeddings, since CUDA graphs read from one address.
    """

    supports_prompt_embeds = False

    def __init__(self, vllm_config, model, encoder_cache, device):
        super().__init__(vllm_config, model, encoder_cache, device)
        size = model.config.hidden_size
        self.method = model.config.thinking_method
        self.embeds = torch.zeros(self.max_num_tokens, size, dtype=self.dtype, device=device)
        self.state = torch.zeros(self.max_num_reqs, size, dtype=self.dtype, device=device)
        self.marker = torch.zeros(self.max_num_reqs, dtype=torch.long, device=device)
        # First come, first served: at most so many requests leave while a preempted one waits
        self.records = RecordStore(
            HostCopies(self.max_num_reqs, size, self.dtype, device), spare=2 * self.max_num_reqs
        )
        self.replays = {}  # slot -> (prompt length, record) of requests that have come back

    @property
    def found(self) -> int:
        """State of the automaton behind which a row does not think."""
        end = self.model.thinking_end
        return -1 if end is None else end.found

    # Requests

    def add_request(self, req_index, new_req_data):
        """Differs from vLLM's in the start of the thinking, or its return from a preemption."""
        super().add_request(req_index, new_req_data)
        count = len(new_req_data.prefill_token_ids) - new_req_data.prompt_len
        record = self.records.begin(new_req_data.req_id, count)
        self.replays.pop(req_index, None)
        if count:
            self.replays[req_index] = new_req_data.prompt_len, record
        self.marker[req_index] = record.markers[-1] if count else 0

    def remove_request(self, req_id):
        super().remove_request(req_id)
        self.records.end(req_id)

    # Inputs

    def prepare_inputs(self, input_batch, req_states):
        """Differs from vLLM's in the embeddings, which carry the states of thinking rows."""
        inputs = super().prepare_inputs(input_batch, req_states)
        if not self.method.fuses:
            return inputs
        count = input_batch.num_tokens
        embeds = self.embeds[:count]
        embeds.copy_(self.model.embed_input_ids(input_batch.input_ids[:count]))
        slots = input_batch.idx_mapping
        rows = input_batch.logits_indices.long()  # the last token of each request
        decodes = input_batch.seq_lens[: input_batch.num_reqs] > req_states.prefill_len.gpu[slots]
        mask = decodes & (self.marker[slots] != self.found)
        embeds[rows] = self.model.fuse(embeds[rows], self.state[slots], mask)
        if self.replays:
            self._replay(input_batch, embeds)
        return {**inputs, "input_ids": None, "inputs_embeds": self.embeds[: input_batch.num_tokens_after_padding]}

    def prepare_dummy_inputs(self, num_reqs, num_tokens):
        """Differs from vLLM's in the buffer that CUDA graphs are captured with."""
        inputs = super().prepare_dummy_inputs(num_reqs, num_tokens)
        if not self.method.fuses:
            return inputs
        return {**inputs, "input_ids": None, "inputs_embeds": self.embeds[:num_tokens]}

    def _replay(self, batch, embeds):
        """Fuse the known completion tokens of requests that have come back, with what is recorded of them."""
        for row, slot in enumerate(batch.idx_mapping_np.tolist()):
            if slot not in self.replays:
                continue
            if not batch.is_prefilling_np[row]:
                del self.replays[slot]
                continue
            prompt, record = self.replays[slot]
            start = int(batch.num_computed_tokens_np[row])
            stop = min(start + int(batch.num_scheduled_tokens[row]), int(batch.prefill_len_np[row]))
            first = max(start, prompt)
            if first >= stop:
                continue
            states = record.states(stop - prompt)[first - prompt :].to(self.device)
            markers = torch.tensor(record.markers[first - prompt : stop - prompt], device=self.device)
            place = int(batch.query_start_loc_np[row]) - start
            tokens = slice(place + first, place + stop)
            embeds[tokens] = self.model.fuse(embeds[tokens], states, markers != self.found)

    # Tokens

    def custom_sampler(self, sampler):
        """vLLM's sampler, which shows what it has drawn to this object."""
        return ThinkingSampler.around(sampler, self), None

    def may_think(self, slots: torch.Tensor) -> torch.Tensor:
        """Whether the next token of slots `(R,)` can be a thought, `(R,)`."""
        marker, end = self.marker[slots], self.model.thinking_end
        return marker == marker if end is None else (marker != end.found) & end.may_think_next(marker)

    def observe(self, batch, tokens: torch.Tensor, drew: torch.Tensor, processed: torch.Tensor) -> None:
        """
        Keep what the next step needs.

        Args:
            batch (`InputBatch`): the step.
            tokens (`torch.Tensor` of shape `(R,)`): drawn tokens.
            drew (`torch.Tensor` of shape `(R,)`): whether a row drew one; in the middle of a prompt none does.
            processed (`torch.Tensor` of shape `(R, V)`): the scores that they were drawn from.

        Raises:
            `RuntimeError`: if the rows that logits were computed from are not those of the step.
        """
        hidden = self.model.last_rows
        if len(hidden) != batch.num_reqs:
            raise RuntimeError(
                f"Logits were computed from {len(hidden)} rows last, and the step has {batch.num_reqs} requests: this "
                "vLLM calls `compute_logits` in another order than the one that thinking models need."
            )
        slots, end = batch.idx_mapping, self.model.thinking_end
        states = self._states(hidden, processed)
        marker = self.marker[slots] if end is None else end.step(self.marker[slots], tokens)
        self.state[slots] = torch.where(drew[:, None], states, self.state[slots])
        self.marker[slots] = torch.where(drew, marker, self.marker[slots])
        lengths = batch.num_computed_tokens_np + batch.num_scheduled_tokens
        ids = [key if ends else None for key, ends in zip(batch.req_ids, lengths >= batch.prefill_len_np)]
        self.records.push(states, marker, ids)

    def _states(self, hidden, processed):
        if not self.method.fuses:
            return torch.zeros_like(hidden)
        if not self.method.reads_distribution:
            return hidden
        probs = processed.float().softmax(-1)
        table = self.model.model.embed_tokens
        start, stop = table.shard_indices.org_vocab_start_index, table.shard_indices.org_vocab_end_index
        # The head may be shorter than the embedding matrix, and a process holds its part of the vocabulary
        shard = probs[:, start:stop]
        states = tensor_model_parallel_all_reduce(shard.to(self.dtype) @ table.weight[: shard.shape[1]])
        if self.method.source == "unit_mean_embedding":
            states = states / probs.norm(dim=-1, keepdim=True).to(states.dtype)
        return states
