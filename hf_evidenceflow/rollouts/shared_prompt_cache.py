"""Keys and values of rows that share prompts: a prompt's are held once, a row's own behind them.

The rows of a prompt are the queries of one product with the prompt's keys, and of one with its values; each row's own
part is a product of its own; one softmax goes over both. The exact attention of a copied cache, at a fraction of its
memory and of what is read for each token (Juravsky et al. 2024, Hydragen, arXiv 2402.05099, has the same split with
two softmaxes).

In a layer with a sliding window, masks leave out what lies before the window of a row. A layer with a state of its own
(a convolution, linear attention) holds the state of each row, which is copied from its prompt's at the fork.

Rows and prompts lie at the beginning of preallocated buffers: where one ends, the last one takes its place.

Shapes: n rows, m prompts, G most rows of a prompt, A heads, K key-value heads, q = A / K, D head size, P prompt
positions, t own positions.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from transformers import Cache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

from .row_state_layer import RowStateLayer


_FIRST_POSITIONS = 64


class SharedPromptLayout:
    """
    Which row belongs to which prompt (`prompts`: the place of each row's), common to all layers. Built anew when rows
    come or go.
    """

    def __init__(self, prompts: Sequence[int], num_prompts: int, device: torch.device):
        counts = [0] * num_prompts
        members = []
        for prompt in prompts:
            members.append(counts[prompt])
            counts[prompt] += 1
        self.num_rows, self.num_prompts, self.group = len(prompts), num_prompts, max(counts, default=0)
        self.prompts = torch.tensor(prompts, dtype=torch.long, device=device)
        self.members = torch.tensor(members, dtype=torch.long, device=device)
        # Each place of the m x G grid taken, in order: then the grid is a view of the rows
        places = [prompt * self.group + member for prompt, member in zip(prompts, members)]
        self.is_grid = places == list(range(num_prompts * self.group))

    def to_grid(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows `(n, K, q, X)` by prompt, as queries of one product: `(m, K, G q, X)`; 0 in places that no row has."""
        _, kv_heads, queries, size = rows.shape
        shape = (self.num_prompts, self.group, kv_heads, queries, size)
        if self.is_grid:
            grid = rows.view(shape)
        else:
            grid = rows.new_zeros(shape)
            grid[self.prompts, self.members] = rows
        return grid.transpose(1, 2).reshape(self.num_prompts, kv_heads, self.group * queries, size)

    def from_grid(self, grid: torch.Tensor, queries: int) -> torch.Tensor:
        """The inverse of [`to_grid`]."""
        grid = grid.unflatten(2, (self.group, queries))  # [m, K, G, q, X]
        if self.is_grid:
            return grid.transpose(1, 2).flatten(0, 1)
        return grid[self.prompts, :, self.members]


class SharedPromptLayer:
    """Keys and values of one layer, which attends to the last `window` positions, or to all."""

    is_compileable = False

    def __init__(self, cache: "SharedPromptCache", window: int | None = None):
        self.cache, self.window = cache, window
        self.prompt_keys = self.prompt_values = self.keys = self.values = None

    def put_prompts(self, places: slice, source: DynamicLayer) -> None:
        """Store the keys and values `(m, K, P', D)` of left-padded prompts; P' may be shorter than the buffer."""
        keys, values = source.keys, source.values
        kv_heads, length = keys.shape[1:3]
        if self.prompt_keys is None or self.prompt_keys.shape[0] < places.stop:
            rows = max(places.stop, 2 * (0 if self.prompt_keys is None else len(self.prompt_keys)))
            rows = min(rows, self.cache.max_prompts)
            for name, new in (("prompt_keys", keys), ("prompt_values", values)):
                buffer = new.new_zeros(rows, kv_heads, self.cache.kept_positions(self.window), new.shape[-1])
                if (old := getattr(self, name)) is not None:
                    buffer[: len(old)] = old
                setattr(self, name, buffer)
        self.prompt_keys[places, :, -length:] = keys
        self.prompt_values[places, :, -length:] = values

    def update(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """Append one position `(n, K, 1, D)` to each row."""
        cache = self.cache
        if self.keys is None or self.keys.shape[2] <= cache.last_step:
            self._reserve(key, value)
        if cache.same_step:
            self.keys[: len(key), :, cache.last_step] = key[:, :, 0]
            self.values[: len(key), :, cache.last_step] = value[:, :, 0]
        else:
            self.keys[cache.row_range, :, cache.steps] = key[:, :, 0]
            self.values[cache.row_range, :, cache.steps] = value[:, :, 0]

    def _reserve(self, key, value):
        positions = _FIRST_POSITIONS if self.keys is None else 2 * self.keys.shape[2]
        positions = min(max(positions, self.cache.last_step + 1), self.cache.max_new_tokens)
        for name, new in (("keys", key), ("values", value)):
            buffer = new.new_zeros(self.cache.max_rows, new.shape[1], positions, new.shape[-1])
            if (old := getattr(self, name)) is not None:
                buffer[:, :, : old.shape[2]] = old
            setattr(self, name, buffer)

    def move(self, buffers: str, targets: list[int], sources: list[int]) -> None:
        """Copy rows (`buffers=""`) or prompts (`"prompt_"`) from `sources` to `targets`."""
        for name in (f"{buffers}keys", f"{buffers}values"):
            buffer = getattr(self, name)
            if buffer is not None:
                length = self.cache.last_step + 1 if not buffers else buffer.shape[2]
                buffer[targets, :, :length] = buffer[sources, :, :length]

    def set_rows(self, layout: SharedPromptLayout) -> None:
        """Nothing to do: a row's own positions are written one by one."""

    def attend(
        self,
        query: torch.Tensor,
        scaling: float,
        dropout: float = 0.0,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        `(n, 1, A, D)` from queries `(n, A, 1, D)` of the position appended last. `scaling` is of the scores; `sinks`
        `(A,)` are scores of a position without a value (gpt-oss).
        """
        cache, layout = self.cache, self.cache.layout
        rows, positions, kv_heads = len(query), cache.last_step + 1, self.keys.shape[1]
        query = query.squeeze(2).unflatten(1, (kv_heads, -1)) * scaling  # [n, K, q, D]
        queries = query.shape[2]
        prompt_keys, prompt_values = self.prompt_keys[: layout.num_prompts], self.prompt_values[: layout.num_prompts]
        grid = torch.matmul(layout.to_grid(query), prompt_keys.transpose(2, 3))  # [m, K, G q, P]
        own = torch.matmul(query, self.keys[:rows, :, :positions].transpose(2, 3))  # [n, K, q, t]
        prompt_mask, own_mask = cache.masks(self.window)
        grid = grid if prompt_mask is None else grid + prompt_mask
        own = own if own_mask is None else own + own_mask
        scores = [layout.from_grid(grid, queries), own]
        if sinks is not None:
            scores.append(sinks.view(1, kv_heads, queries, 1).expand(rows, -1, -1, -1).to(own))
        probs = torch.cat(scores, dim=-1).softmax(-1, dtype=torch.float32).to(query.dtype)
        if dropout:
            probs = F.dropout(probs, dropout)
        prompt_probs, own_probs = probs[..., : prompt_keys.shape[2] + positions].split(
            [prompt_keys.shape[2], positions], dim=-1
        )
        attended = layout.from_grid(torch.matmul(layout.to_grid(prompt_probs.contiguous()), prompt_values), queries)
        attended = attended + torch.matmul(own_probs, self.values[:rows, :, :positions])
        return attended.flatten(1, 2)[:, None]  # [n, 1, A, D]


# Layer of a [`~transformers.DynamicCache`] -> what takes over from it
SHARED_LAYERS: dict[type, Callable] = {
    DynamicLayer: lambda cache, source: SharedPromptLayer(cache),
    DynamicSlidingWindowLayer: lambda cache, source: SharedPromptLayer(cache, source.sliding_window),
    LinearAttentionLayer: lambda cache, source: RowStateLayer(source),
}


class SharedPromptCache(Cache):
    """
    Cache of rows that share prompts, for passes of one position under [`shared_prompt_passes`].

    Args:
        max_rows, max_prompts (`int`): most rows and most prompts at a time.
        prompt_length (`int`): positions of the longest prompt.
        max_new_tokens (`int`): most own positions per row.
        device (`torch.device`): device of the model's inputs.
        dtype (`torch.dtype`): dtype of the keys.
    """

    def __init__(self, max_rows, max_prompts, prompt_length, max_new_tokens, device, dtype):
        super().__init__(layers=[])
        self.max_rows, self.max_prompts = max_rows, max_prompts
        self.prompt_length, self.max_new_tokens = prompt_length, max_new_tokens
        self.device, self.dtype = device, dtype
        self.layout = SharedPromptLayout([], 0, device)
        self.prompt_bias = torch.zeros(max_prompts, 1, 1, prompt_length, device=device, dtype=dtype)
        self.prompt_mask = self.own_mask = None
        self.last_step, self.same_step = -1, True
        self.all_steps: list[int] = []
        self._window_masks: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def kept_positions(self, window: int | None) -> int:
        """Positions of the longest prompt that a later one can see."""
        return self.prompt_length if window is None else min(self.prompt_length, window - 1)

    def masks(self, window: int | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """What is added to the scores of prompts and of own positions in a layer with this window; `None`: nothing."""
        if window is None or self.prompt_length + self.last_step < window:
            return self.prompt_mask, self.own_mask
        if window not in self._window_masks:
            self._window_masks[window] = self._masks_of(window)
        return self._window_masks[window]

    def _masks_of(self, window):
        steps = torch.tensor(self.all_steps, device=self.device)
        # The rows of a prompt came together and are at the same step
        prompt_steps = steps.new_zeros(self.layout.num_prompts).index_put((self.layout.prompts,), steps)
        kept, lowest = self.kept_positions(window), torch.finfo(self.dtype).min
        places = torch.arange(kept, device=self.device)
        past = places < (kept + prompt_steps - (window - 1))[:, None]  # [m, P]
        bias = self.prompt_bias[: self.layout.num_prompts, ..., self.prompt_length - kept :]
        own = torch.arange(self.last_step + 1, device=self.device) - steps[:, None]  # [n, t]
        own_bias = torch.zeros(own.shape, device=self.device, dtype=self.dtype)
        own_bias.masked_fill_((own > 0) | (own <= -window), lowest)
        return bias.masked_fill(past[:, None, None], lowest), own_bias[:, None, None]

    def put_prompts(self, first: int, prompt_cache: Cache, mask: torch.Tensor) -> None:
        """Take over, from place `first` on, the prompts of a pass with this left-padded attention mask `(m, P')`."""
        places = slice(first, first + len(mask))
        for source in prompt_cache.layers[len(self.layers) :]:
            self.layers.append(SHARED_LAYERS[type(source)](self, source))
        for layer, source in zip(self.layers, prompt_cache.layers, strict=True):
            layer.put_prompts(places, source)
        lowest = torch.finfo(self.dtype).min
        self.prompt_bias[places] = lowest
        self.prompt_bias[places, 0, 0, -mask.shape[1] :].masked_fill_(mask.bool(), 0.0)

    def set_rows(self, prompts: Sequence[int], num_prompts: int) -> None:
        """Tell each row's prompt, after rows came or went."""
        self.layout = SharedPromptLayout(prompts, num_prompts, self.device)
        self.row_range = torch.arange(len(prompts), device=self.device)
        for layer in self.layers:
            layer.set_rows(self.layout)
        bias = self.prompt_bias[:num_prompts]
        self.prompt_mask = bias if bool((bias < 0).any()) else None

    def set_steps(self, steps: list[int]) -> None:
        """Tell at which own position each row's next token lies, before a pass."""
        self.all_steps, self._window_masks = steps, {}
        self.last_step = max(steps)
        self.same_step = min(steps) == self.last_step
        self.own_mask = None
        if not self.same_step:
            self.steps = torch.tensor(steps, device=self.device)
            later = torch.arange(self.last_step + 1, device=self.device) > self.steps[:, None]
            mask = torch.zeros(later.shape, device=self.device, dtype=self.dtype)
            self.own_mask = mask.masked_fill_(later, torch.finfo(self.dtype).min)[:, None, None]

    def move_rows(self, targets: list[int], sources: list[int]) -> None:
        """Copy the own positions of rows to other places."""
        for layer in self.layers:
            layer.move("", targets, sources)

    def move_prompts(self, targets: list[int], sources: list[int]) -> None:
        """Copy prompts to other places."""
        for layer in self.layers:
            layer.move("prompt_", targets, sources)
        self.prompt_bias[targets] = self.prompt_bias[sources]

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        """Appends, and returns the layer in the place of keys and values, for [`shared_prompt_passes`]."""
        layer = self.layers[layer_idx]
        layer.update(key_states, value_states)
        return layer, layer

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions before the next one, padding included."""
        return self.prompt_length + self.last_step

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Place of the next position, for the mask that a model makes; attention here has its own."""
        return self.get_seq_length()

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Positions that mask would span, and the place of the first."""
        return self.get_seq_length() + query_length, 0
