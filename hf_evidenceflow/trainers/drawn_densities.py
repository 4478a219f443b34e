"""What a rollout draws besides its tokens, in the importance ratio: drawn states, drawn weights, choices to think.

The rollout records what was drawn with its log-density; each pass over the policy computes the log-density again, with
gradients. To the log-probability of a token its change since the rollout is added, which is 0 at first, so that the
size of a density of many dimensions costs no digits.

Shapes: B rows, C completion tokens, H hidden size, n places, K drawn tokens.
"""

import math
from contextlib import contextmanager

import torch

from ..models.decoder import base_causal_lm
from ..models.thinking.thinking_density import choice_log_density, gaussian_log_density, gumbel_log_density
from ..models.thinking.thinking_rollout import ThinkingRollout
from .length_buckets import join_buckets
from .policy import is_reference
from .update_passes import scatter
from .value_head import last_states


# Where nothing was drawn
_FILL = {"states": 0, "mask": False, "log_density": 0, "drawn": -math.inf, "drawn_ids": 0, "choice": -1}
PREFIX = "thinking_"  # of their names in a batch


def drawn_fields(rollout: ThinkingRollout) -> dict[str, torch.Tensor] | None:
    """What a rollout drew besides tokens, with its states and mask, by name; `None` where that is nothing."""
    if rollout.log_density is None:
        return None
    return {name: value for name in _FILL if (value := getattr(rollout, name)) is not None}


def fit_draws(drawn: dict[str, torch.Tensor], count: int) -> dict[str, torch.Tensor]:
    """[`drawn_fields`] `(B, C, ...)` cut or filled to `count` columns."""
    fitted = {}
    for name, value in drawn.items():
        missing = max(0, count - value.shape[1])
        filling = value.new_full((len(value), missing, *value.shape[2:]), _FILL[name])
        fitted[name] = torch.cat([value[:, :count], filling], dim=1)
    return fitted


def counted_draws(drawn: dict[str, torch.Tensor], completion_mask: torch.Tensor, noise: str) -> torch.Tensor:
    """
    Where `(B, C)` there are draws that had an effect. A state is fed with the next token, so that those at the last
    token of a completion are left out; drawn weights choose the token itself.

    Args:
        drawn (`dict`): as of [`fit_draws`].
        completion_mask (`torch.Tensor` of shape `(B, C)`): tokens of the completions.
        noise (`str`): of the [`ThinkingMethod`].
    """
    there = completion_mask.bool()
    if noise != "gumbel":
        there = torch.cat([there[:, 1:], torch.zeros_like(there[:, :1])], dim=1)
    places = drawn["mask"].bool() if noise in ("gaussian", "gumbel") else torch.zeros_like(there)
    if "choice" in drawn:
        places = places | (drawn["choice"] >= 0)
    return there & places


def check_draws(args, config) -> None:
    """Refuse, with a `ValueError` that says what to do, settings under which the update could not repeat a draw."""
    method = config.thinking_method
    if config.thinking_mode == "none" or method.noise not in ("gaussian", "gumbel"):
        return
    neutral = {"repetition_penalty": (None, 1.0)}
    if method.noise == "gaussian":
        neutral |= {"top_p": (None, 1.0), "top_k": (None, 0), "min_p": (None, 0.0)}
    given = {name: getattr(args, name) for name in neutral} | (args.generation_kwargs or {})
    for name, values in neutral.items():
        if given[name] not in values:
            raise ValueError(
                f"`{name}={given[name]!r}` with `thinking_mode={config.thinking_mode!r}`: the log-density of a draw "
                "is that of the whole distribution at `temperature`. Leave it out; `thinking_top_k` of the model cuts "
                "what states are made of."
            )


def refuse_sharded(trainer, config) -> None:
    """Refuse draws where weights are sharded: log-densities are computed outside of a pass."""
    method, deepspeed = config.thinking_method, trainer.accelerator.state.deepspeed_plugin
    sharded = trainer.is_fsdp_enabled or (deepspeed is not None and deepspeed.zero_stage == 3)
    if sharded and (method.noise in ("gaussian", "gumbel") or method.schedule == "head"):
        raise ValueError(
            f"`thinking_mode={config.thinking_mode!r}` computes the log-density of what a rollout drew outside of a "
            "pass, where FSDP and ZeRO-3 have sharded the weights. Train without sharded weights (DDP, ZeRO-2)."
        )


@contextmanager
def head_in_forward(model: torch.nn.Module):
    """
    Makes what a pass returns depend on the head of the schedule, by nothing: DDP takes a module whose gradient comes
    from elsewhere for unused.
    """
    body = base_causal_lm(model).base_model
    head = dict(body.named_children()).get("thinking_head")
    if head is None:
        yield
        return

    def attach(module, args, output):
        states = output.last_hidden_state
        output.last_hidden_state = states + 0 * head(states).unsqueeze(-1).to(states.dtype)

    handle = body.register_forward_hook(attach)
    try:
        yield
    finally:
        handle.remove()


class DrawnDensitiesMixin:
    """
    For [`HRPOTrainer`]; put before [`UpdatePassesMixin`]. Leaves `_log_density` of each pass over the policy, while
    `_drawn` holds what a batch drew.
    """

    _drawn: dict[str, torch.Tensor] | None = None  # `drawn_fields` of the batch at hand
    _log_density: torch.Tensor | None = None  # (B, C), change since the rollout

    def _counted_draws(self, completion_mask):
        """Where `(B, C)` the batch at hand has draws that had an effect, and what it drew."""
        drawn = fit_draws(self._drawn, completion_mask.shape[1])
        return counted_draws(drawn, completion_mask, self._thinking_method.noise), drawn

    @contextmanager
    def _own_clip(self, counted):
        """In the loss, `density_epsilon` in the place of `epsilon` where something was drawn."""
        own, before = self.args.density_epsilon, (self.epsilon_low, self.epsilon_high)
        if own is not None and counted is not None:
            self.epsilon_low, self.epsilon_high = (torch.where(counted, own, epsilon) for epsilon in before)
        try:
            yield
        finally:
            self.epsilon_low, self.epsilon_high = before

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        """Differs from the parent in computing log-densities with the same pass, if it goes over the policy."""
        rows = model, input_ids, attention_mask, logits_to_keep
        self._log_density = None
        if self._drawn is None or is_reference(self, model):
            return super()._get_per_token_logps_and_entropies(*rows, *args, **kwargs)
        self._packs(model, {})  # looks at the model with a pass of its own, whose states are nobody's
        policy = self.accelerator.unwrap_model(self.model)
        with head_in_forward(policy), last_states(policy) as states:
            result = super()._get_per_token_logps_and_entropies(*rows, *args, **kwargs)
        counted, drawn = self._counted_draws(attention_mask[:, -logits_to_keep:])
        with self.accelerator.autocast():
            self._log_density = self._density_of(states, drawn | {"counted": counted}, logits_to_keep)
        return result

    def _density_of(self, states, drawn, count):
        if self._places is not None:  # one row of all places after another
            flat = {name: value.flatten(0, 1)[self._places] for name, value in drawn.items()}
            density = self._change(torch.cat(states, dim=1)[0], flat)
            return scatter(density, self._places, (len(drawn["mask"]), count))
        parts = []
        for state, bucket in zip(states, self._buckets, strict=True):
            columns = bucket.completion_columns
            hidden = state[:, -columns - 1 : -1]
            flat = {name: value[bucket.rows, :columns].flatten(0, 1) for name, value in drawn.items()}
            parts.append(self._change(hidden.flatten(0, 1), flat).view(hidden.shape[:2]))
        return join_buckets(self._buckets, parts, count)

    def _change(self, hidden, drawn):
        """Change `(n,)` of the log-density since the rollout, from states `(n, H)` before the tokens."""
        model = base_causal_lm(self.accelerator.unwrap_model(self.model))
        counted = drawn["counted"]
        density = hidden.new_zeros(len(hidden), dtype=torch.float64)
        if "choice" in drawn:  # all places, so that the head of each process has a gradient
            logits = model.base_model.thinking_head(hidden)
            density = density + choice_log_density(logits.double(), drawn["choice"])
        places = (counted & drawn["mask"]).nonzero().squeeze(1)
        if self._thinking_method.noise in ("gaussian", "gumbel") and len(places):
            scores = model.read_out(hidden[places][None])[0].float() / self.temperature
            own = {name: value[places] for name, value in drawn.items()}
            density = density.index_put((places,), state_density(model, scores, hidden[places], own), accumulate=True)
        change = density - drawn["log_density"].double()
        return torch.where(counted, change, 0.0).to(torch.promote_types(hidden.dtype, torch.float32))


def state_density(model, scores, hidden, drawn) -> torch.Tensor:
    """
    Log-density `(n,)`, fp64, of the states or weights that a rollout drew.

    Args:
        model ([`ThinkingCausalLMMixin`]): the policy.
        scores (`torch.Tensor` of shape `(n, V)`), hidden (`torch.Tensor` of shape `(n, H)`):
            Logits at the temperature of the rollout, and last hidden states, before the tokens.
        drawn (`dict`): `states` `(n, H)`, or under Gumbel noise `drawn` and `drawn_ids` `(n, K)`.
    """
    if model.config.thinking_method.noise == "gumbel":
        return gumbel_log_density(scores.gather(-1, drawn["drawn_ids"]).double(), drawn["drawn"].double())
    mean = model.thinking_source()(scores, hidden)
    return gaussian_log_density(mean.double(), drawn["states"].double(), model.thinking_noise_scale().double())
