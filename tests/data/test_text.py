"""Text as documents: from files, generated, held out."""

import pytest

from hf_evidenceflow.data.text import END_OF_TEXT, generate_documents, load_documents, split_documents


def test_a_text_file_is_cut_at_the_separator(tmp_path):
    (tmp_path / "a.txt").write_text(f"one{END_OF_TEXT}two{END_OF_TEXT}\n")
    assert load_documents(str(tmp_path / "a.txt")) == ["one", "two"]


def test_a_text_file_without_the_separator_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    assert load_documents(str(tmp_path / "a.txt")) == ["one\n\ntwo"]


def test_a_folder_gives_the_text_file_of_the_split(tmp_path):
    (tmp_path / "train.txt").write_text("seen")
    (tmp_path / "validation.txt").write_text("held out")
    assert load_documents(str(tmp_path), "validation") == ["held out"]


def test_a_data_file_gives_the_text_column_without_blank_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"story": "one"}\n{"story": " "}\n{"story": "two"}\n')
    assert load_documents(str(tmp_path / "a.jsonl"), text_column="story") == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (None, FileNotFoundError, "There is no file"),
        (b"", ValueError, "holds no text"),
        (b" \n", ValueError, "holds no text"),
        (b"\xff\xfe\xfa", ValueError, "is UTF-16"),
    ],
)
def test_unusable_text_files_are_named(tmp_path, content, error, words):
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=words) as caught:
        load_documents(str(path))
    assert str(path) in str(caught.value)


def test_generated_documents_are_the_same_again_and_held_out_ones_are_new():
    train, validation = generate_documents(train=30, validation=7)
    assert (train, validation) == generate_documents(train=30, validation=7)
    assert (len(train), len(validation)) == (30, 7)
    assert not set(train) & set(validation)


def test_the_last_documents_are_held_out():
    assert split_documents(["a", "b", "c", "d", "e"], 0.3) == (["a", "b", "c"], ["d", "e"])


def test_of_a_single_document_the_end_is_held_out():
    train, validation = split_documents(["one two three four"], 0.25)
    assert (train, validation) == (["one two"], [" three four"])


@pytest.mark.parametrize("share", [0, 1, -0.1, 0.9])
def test_a_share_that_leaves_nothing_is_an_error(share):
    with pytest.raises(ValueError, match="validation_share"):
        split_documents(["a", "b"], share)
