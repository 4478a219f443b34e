"""What each way of thinking means: one row, each step computed from its whole input, without padding and cache."""

import math

import torch
from thinking_models import MASK, PLACEHOLDER, PROMPTS, make_thinker, think


FIELDS = {
    "projection": {"thinking_residual_r_min": 0.05, "thinking_residual_r_max": 0.1},
    "embedding": {"thinking_residual_r_min": 0.05, "thinking_residual_r_max": 0.1},
    "swi": {"thinking_min_text": 2, "thinking_max_blocks": 3},
    "gumbel": {"thinking_top_k": 5, "thinking_temperature": 0.7},
    "tarpo": {"thinking_top_k": 7},
    "later": {"thinking_count": 3},
    "coconut": {"thinking_count": 3},
    "codi": {"thinking_count": 3, "thinking_projection_norm": "layernorm"},
    "pause": {"thinking_count": 3},
}


def make_method(mode, family="qwen2", **fields):
    """A model of a preset, in a setting in which rows change between thoughts and text."""
    settings = {
        "thinking_answer_start": None,
        "thinking_placeholder_id": PLACEHOLDER,
        **FIELDS.get(mode, {}),
        **fields,
    }
    if "boundary" in (settings.get("thinking_schedule"), {"switch": "boundary"}.get(mode)):
        settings = {**boundary_tokens(mode, family, settings), **settings}
    model = make_thinker(mode, settings.pop("thinking_count", None), family, **settings)
    if model.config.thinking_has_head:
        torch.nn.init.normal_(model.model.thinking_head.weight, generator=torch.Generator().manual_seed(3))
    return model


def boundary_tokens(mode, family, settings):
    """The third token that the second row writes as text, and one that it writes thinking behind that."""
    text = think(make_thinker("none", None, family)).sequences[1, PROMPTS.shape[1] :]
    start = int(text[2])
    free = {**settings, "thinking_start_id": start, "thinking_end_id": next(i for i in range(3, 97) if i != start)}
    thoughts = think(make_thinker(mode, None, family, **free)).sequences[1, PROMPTS.shape[1] :]
    return {
        "thinking_start_id": start,
        "thinking_end_id": next(i for i in [*thoughts[5:].tolist(), 3, 4] if i != start),
    }


class _Row:
    def __init__(self, model, prompt):
        self.inputs = model.get_input_embeddings().weight[prompt]
        self.schedule = _SCHEDULES.get(model.config.thinking_method.schedule, _Always)(model, prompt)
        self.tokens, self.mask = [], []


@torch.no_grad()
def naive_loop(model, new_tokens=10, sample=False):
    """
    Tokens and thinking mask `[B, C]`. Tokens are the likeliest, or drawn with the random numbers of the stock loop,
    which draws those of a step for all rows at once.
    """
    torch.manual_seed(0)
    words, config = model.get_input_embeddings().weight, model.config
    rows = [_Row(model, ids[seen > 0]) for ids, seen in zip(PROMPTS, MASK)]
    for step in range(new_tokens):
        hidden = torch.stack([model.model(inputs_embeds=row.inputs[None]).last_hidden_state[0, -1] for row in rows])
        scores = model.lm_head(hidden).float()
        counts = config.thinking_count is None or step < config.thinking_count
        thinks = [row.schedule.before(*pair) and counts for row, *pair in zip(rows, scores, hidden)]
        choices = scores.clone()
        if config.token_policy == "placeholder":
            choices[thinks] = torch.where(torch.arange(len(words)) == PLACEHOLDER, 0.0, -torch.inf)
        drawn = choices.softmax(-1).multinomial(1).squeeze(1) if sample else choices.argmax(-1)
        for index, (row, token) in enumerate(zip(rows, drawn.tolist())):
            thought, fed = row.schedule.after(token, thinks[index]), words[token]
            if thought:
                fed = _mixed(model, _state(model, scores[index], hidden[index]), fed)
            row.inputs = torch.cat([row.inputs, fed[None]])
            row.tokens.append(token)
            row.mask.append(thought)
    return [row.tokens for row in rows], [row.mask for row in rows]


def _state(model, scores, hidden):
    source, config, words = model.config.thinking_method.source, model.config, model.get_input_embeddings().weight
    ids = scores.argsort(descending=True)[: config.averaged_tokens]
    probs = (scores[ids] / config.thinking_temperature).softmax(-1).to(words)
    mean = sum(p * words[i] for p, i in zip(probs, ids))
    head = model.lm_head.weight.float()
    ridge = 1e-4 * (head**2).sum() / len(hidden) * torch.eye(len(hidden))
    image = hidden.float() @ (head.T @ head + ridge).inverse() @ head.T @ words.float()
    image = (image / image.norm() * words.float().norm(dim=1).mean()).to(words)
    weight = config.thinking_fusion
    return {
        "mean_embedding": mean,
        "unit_mean_embedding": mean / probs.norm(),
        "aligned": image,
        "fusion": weight * image + (1 - weight) * mean,
    }.get(source, hidden)


def _mixed(model, state, word):
    base, method = model.model, model.config.thinking_method
    if method.source == "projection":
        state = base.thinking_projection(state)
        if model.config.thinking_projection_norm == "layernorm":
            state = (state - state.mean()) / (state.var(unbiased=False) + 1e-5).sqrt()
        else:
            state = state / state.norm()
    if method.mixer != "gated":
        return {"replace": state, "add": word + state, "token": word}[method.mixer]
    r, i = base.thinking_residual_gate_r(word), base.thinking_residual_gate_i(word)
    a = torch.exp(base.thinking_residual_Lambda() * r)
    return a * word + (1 - a**2 + 1e-8).sqrt() * (i * state)


class _Always:
    def __init__(self, model, prompt):
        self.model, self.config = model, model.config

    def before(self, scores, hidden):
        return True

    def after(self, token, thinks):
        return thinks


class _Entropy(_Always):
    thinks, length, reference, blocks = True, 0, None, 1

    def before(self, scores, hidden):
        entropy = -sum(p * math.log(p) for p in scores.softmax(-1).tolist() if p > 0)
        self.reference = entropy if self.reference is None else self.reference
        if self.thinks:
            switches = entropy < self.reference and self.length >= self.config.thinking_min_latent
        else:
            most = self.config.thinking_max_blocks
            may = self.length >= self.config.thinking_min_text and (most is None or self.blocks < most)
            switches = entropy > self.reference and may
        if switches:
            self.thinks, self.reference, self.length = not self.thinks, entropy, 0
            self.blocks += self.thinks
        self.length += 1
        return self.thinks


class _Confidence(_Always):
    def before(self, scores, hidden):
        return float(scores.softmax(-1).max()) < self.config.thinking_threshold


class _Head(_Always):
    def before(self, scores, hidden):
        return float(self.model.model.thinking_head(hidden)) > 0


class _Boundary(_Always):
    def __init__(self, model, prompt):
        super().__init__(model, prompt)
        self.inside = int(prompt[-1]) == self.config.thinking_start_id

    def before(self, scores, hidden):
        return self.inside

    def after(self, token, thinks):
        thinks = thinks and token != self.config.thinking_end_id
        self.inside = thinks or token == self.config.thinking_start_id
        return thinks


_SCHEDULES = {"entropy": _Entropy, "confidence": _Confidence, "head": _Head, "boundary": _Boundary}
