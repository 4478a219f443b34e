"""The answer marker's automaton, against a search in the decoded bytes."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_evidenceflow.models.thinking.answer_marker import MarkerAutomaton, marker_table, token_bytes


def byte_fallback_tokenizer():
    tokens = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "#", "##", "▁##", "a", "▁a", "é", "ab"]
    vocab = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def word_level_tokenizer():
    tokens = ["<unk>", "the", "answer", "is", "####", "##", "#", "4"]
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def run(table, ids):
    """States after each token."""
    automaton, state, states = MarkerAutomaton(table), torch.zeros(1, dtype=torch.long), []
    for token in ids:
        state = automaton.step(state, torch.tensor([token]))
        states.append(int(state))
    return states


@pytest.mark.parametrize("marker", ["####", "##", "a#a#", "#a", "aab", "é"])
@pytest.mark.parametrize("make", ["byte_level", "byte_fallback"])
def test_found_at_the_token_that_completes_the_marker_in_the_bytes(tokenizer, make, marker):
    tok = tokenizer if make == "byte_level" else byte_fallback_tokenizer()
    if make == "byte_level" and marker == "é":
        marker = "b"
    table, pieces = marker_table(tok, marker), token_bytes(tok)
    alphabet = [i for i, piece in enumerate(pieces) if piece and set(piece) & set((marker + " ").encode())]
    generator = torch.Generator().manual_seed(0)
    found = 0
    for _ in range(300):
        ids = [alphabet[i] for i in torch.randint(len(alphabet), (40,), generator=generator)]
        expected = [marker.encode() in b"".join(pieces[i] for i in ids[: n + 1]) for n in range(len(ids))]
        assert [state == len(marker.encode()) for state in run(table, ids)] == expected, ids
        found += any(expected)
    assert found > 10  # the search was not empty


def test_bytes_join_to_the_decoded_text(tokenizer):
    ids = tokenizer("Tom has 3+4 apples.\nSo 7 #### 7").input_ids
    pieces = token_bytes(tokenizer)
    assert b"".join(pieces[i] for i in ids).decode() == tokenizer.decode(ids)


def test_a_character_split_into_byte_tokens_is_found():
    tok = byte_fallback_tokenizer()
    first, second = (tok.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "é".encode())
    assert run(marker_table(tok, "é"), [first, second]) == [1, 2]


def test_word_level_tokens_are_separated_by_spaces():
    tok = word_level_tokenizer()
    table = marker_table(tok, "####")
    assert run(table, tok("the answer is #### 4").input_ids)[-2:] == [4, 4]
    # Decoded, these are `## ##`
    assert run(table, tok("## ##").input_ids)[-1] == 2


def test_ids_beyond_the_vocabulary_leave_the_state(tokenizer):
    table = marker_table(tokenizer, "####")
    hashes = tokenizer.convert_tokens_to_ids("##")
    assert run(table, [hashes, 96, 10_000, hashes]) == [2, 2, 2, 4]


def test_an_added_token_with_the_marker_inside_is_found():
    tok = byte_fallback_tokenizer()
    tok.add_special_tokens({"additional_special_tokens": ["<answer>"]})
    assert run(marker_table(tok, "<answer>"), [tok.convert_tokens_to_ids("<answer>")]) == [8]


def test_a_marker_out_of_the_tokenizers_reach_is_an_error():
    with pytest.raises(ValueError, match="cannot produce the answer marker `thinking_answer_start='Result:'`"):
        marker_table(word_level_tokenizer(), "Result:")


def test_the_table_is_built_once_for_a_tokenizer(tokenizer):
    first = MarkerAutomaton.for_tokenizer(tokenizer, "####", torch.device("cpu"))
    assert MarkerAutomaton.for_tokenizer(tokenizer, "####", torch.device("cpu")).table is first.table
    assert MarkerAutomaton.for_tokenizer(tokenizer, "##", torch.device("cpu")).table is not first.table
