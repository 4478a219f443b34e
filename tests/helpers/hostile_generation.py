"""A generation config in which everything that changes tokens is set."""

HOSTILE = {
    "max_length": 5,
    "min_length": 60,
    "min_new_tokens": 60,
    "max_time": 1e-9,
    "stop_strings": ["a", "e", "1"],
    "num_beams": 3,
    "use_cache": False,
    "cache_implementation": "static",
    "temperature": 0.01,
    "top_k": 1,
    "top_p": 0.01,
    "min_p": 0.9,
    "top_h": 0.01,
    "typical_p": 0.01,
    "epsilon_cutoff": 0.4,
    "eta_cutoff": 0.4,
    "repetition_penalty": 9.0,
    "no_repeat_ngram_size": 1,
    "bad_words_ids": [[5], [7]],
    "renormalize_logits": True,
    "forced_eos_token_id": 7,
    "exponential_decay_length_penalty": (1, 9.0),
    "suppress_tokens": list(range(3, 60)),
    "begin_suppress_tokens": list(range(3, 90)),
    "sequence_bias": [[[11], 50.0]],
    "token_healing": True,
    "guidance_scale": 3.0,
    "watermarking_config": {"bias": 20.0},
    "num_return_sequences": 2,
    "return_dict_in_generate": True,
    "output_scores": True,
    "prompt_lookup_num_tokens": 3,
    "assistant_early_exit": 1,
    "prefill_chunk_size": 2,
    "penalty_alpha": 0.5,
    "dola_layers": "low",
    "an_entry_of_ones_own": 3,
}


def make_hostile(model):
    """The model with that generation config."""
    for name, value in HOSTILE.items():
        setattr(model.generation_config, name, value)
    return model
