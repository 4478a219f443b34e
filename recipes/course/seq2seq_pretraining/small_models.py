"""A GPT-2 and a T5 of the same width, from scratch."""

from transformers import AutoConfig, AutoModelForCausalLM, T5ForConditionalGeneration

from hf_evidenceflow.recipes.course.seq2seq_pretraining.sentinel_tokenizer import END_OF_TARGET


def gpt2(tokenizer, length: int, width: int, layers: int):
    """A GPT-2 with random weights."""
    config = AutoConfig.for_model(
        "gpt2",
        vocab_size=len(tokenizer),
        n_positions=length,
        n_embd=width,
        n_layer=layers,
        n_head=width // 16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    )
    return AutoModelForCausalLM.from_config(config)


def t5(tokenizer, width: int, layers: int) -> T5ForConditionalGeneration:
    """A T5 with random weights; its decoder starts from padding."""
    config = AutoConfig.for_model(
        "t5",
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=16,
        d_ff=4 * width,
        num_layers=layers,
        num_heads=width // 16,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(END_OF_TARGET),
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return T5ForConditionalGeneration(config)
