"""Documents put into rows of one length."""

import numpy as np
import pytest

from hf_evidenceflow.data.packing import pack_rows


# Documents of 2, 3, 5 and 7 tokens; each token is unique
LENGTHS = (2, 3, 5, 7)

ENDS = np.cumsum(LENGTHS)

IDS = np.arange(100, 100 + ENDS[-1], dtype=np.int32)

DOCUMENTS = [list(IDS[end - length : end]) for length, end in zip(LENGTHS, ENDS)]


def rows_of(packing, block_size=8):
    dataset = pack_rows(IDS, ENDS, block_size, packing, pad_token_id=9)
    return [{name: value.tolist() for name, value in dataset[i].items()} for i in range(len(dataset))]


def test_blocks_are_the_stream_in_its_order_without_the_rest():
    rows = rows_of("blocks", block_size=7)
    assert [token for row in rows for token in row["input_ids"]] == IDS[:14].tolist()
    assert all(row["labels"] == row["input_ids"] for row in rows)


def test_a_text_below_one_block_is_an_error():
    with pytest.raises(ValueError, match="17 tokens, fewer than one block of 18"):
        rows_of("blocks", block_size=18)


def test_documents_are_packed_whole_and_best_fit():
    rows = rows_of("documents")
    assert [row["input_ids"] for row in rows] == [
        [*DOCUMENTS[3], 9],
        [*DOCUMENTS[2], *DOCUMENTS[1]],
        [*DOCUMENTS[0], *[9] * 6],
    ]


def test_positions_start_at_0_in_each_document():
    assert [row["position_ids"] for row in rows_of("documents")] == [
        [0, 1, 2, 3, 4, 5, 6, 0],
        [0, 1, 2, 3, 4, 0, 1, 2],
        [0, 1, 0, 1, 2, 3, 4, 5],
    ]


@pytest.mark.parametrize("packing", ["documents", "none"])
def test_first_tokens_and_fillers_have_no_label(packing):
    firsts = {document[0] for document in DOCUMENTS}
    for row in rows_of(packing):
        for token, label in zip(row["input_ids"], row["labels"]):
            assert label == (-100 if token in firsts or token == 9 else token)


def test_a_document_longer_than_a_row_is_cut_in_pieces():
    rows = rows_of("documents", block_size=4)
    tokens = sorted(token for row in rows for token in row["input_ids"] if token != 9)
    assert tokens == IDS.tolist()


def test_without_packing_each_document_has_its_row():
    rows = rows_of("none", block_size=5)
    assert [row["input_ids"][: sum(row["attention_mask"])] for row in rows] == [d[:5] for d in DOCUMENTS]
    assert [sum(row["attention_mask"]) for row in rows] == [2, 3, 5, 5]


@pytest.mark.parametrize(
    ("settings", "words"), [(("bfd", 8), "blocks, documents, none"), (("blocks", 1), "at least 2")]
)
def test_unknown_packing_and_single_token_rows_are_errors(settings, words):
    with pytest.raises(ValueError, match=words):
        rows_of(*settings)
