import gzip

import datasets
import pytest

from hf_evidenceflow.data import load_split


ROWS = [{"question": f"q{i}", "answer": f"#### {i}"} for i in range(7)]


@pytest.fixture
def hub(monkeypatch):
    """Stands in for the Hub; returns the list of the calls."""
    calls = []

    def load_dataset(name, config=None, split=None):
        calls.append((name, config, split))
        return datasets.Dataset.from_list([{"question": config, "answer": "5"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "csv"])
def test_file_of_each_format_is_read(tmp_path, suffix):
    path = tmp_path / f"train.{suffix}"
    rows = datasets.Dataset.from_list(ROWS)
    {"jsonl": rows.to_json, "parquet": rows.to_parquet, "csv": rows.to_csv}.get(suffix, rows.to_json)(str(path))
    assert load_split(str(path), "train").to_list() == ROWS


def test_json_file_may_be_one_array(tmp_path):
    path = tmp_path / "train.json"
    path.write_text('[{"question": "a"}, {"question": "b"}]')
    assert load_split(str(path), "train")["question"] == ["a", "b"]


def test_folder_gives_the_split_that_was_asked(write_jsonl, tmp_path):
    write_jsonl("set/train.jsonl", ROWS[:2])
    write_jsonl("set/test.jsonl", ROWS[2:])
    assert load_split(str(tmp_path / "set"), "test").to_list() == ROWS[2:]


@pytest.mark.parametrize("place", ["", "data/", "main/"])
def test_folder_may_hold_shards_as_on_the_hub(tmp_path, place):
    for shard, rows in enumerate([ROWS[:3], ROWS[3:]]):
        path = tmp_path / "set" / f"{place}train-0000{shard}-of-00002.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows).to_parquet(str(path))
    assert load_split(str(tmp_path / "set"), "train", configs=("main",)).to_list() == ROWS


def test_configurations_of_a_folder_are_joined(write_jsonl, tmp_path):
    write_jsonl("set/algebra/train.jsonl", ROWS[:3])
    write_jsonl("set/geometry/train.jsonl", ROWS[3:])
    assert load_split(str(tmp_path / "set"), "train", configs=("algebra", "geometry")).to_list() == ROWS


def test_folder_without_one_of_the_configurations_is_an_error(write_jsonl, tmp_path):
    write_jsonl("set/algebra/train.jsonl", ROWS)
    with pytest.raises(FileNotFoundError, match="not of geometry"):
        load_split(str(tmp_path / "set"), "train", configs=("algebra", "geometry"))


def test_home_directory_is_expanded(write_jsonl, tmp_path, monkeypatch):
    write_jsonl("set/train.jsonl", ROWS)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load_split("~/set", "train")) == len(ROWS)


def test_hub_name_is_loaded_from_the_hub(hub):
    load_split("openai/gsm8k", "test", configs=("main",))
    assert hub == [("openai/gsm8k", "main", "test")]


def test_configurations_on_the_hub_are_joined(hub):
    dataset = load_split("cais/mmlu", "test", configs=("astronomy", "virology"))
    assert dataset["question"] == ["astronomy", "virology"]


def test_hub_name_without_configurations_is_loaded_whole(hub):
    load_split("owner/name", "train")
    assert hub == [("owner/name", None, "train")]


@pytest.mark.parametrize(
    "error", [ConnectionError("no network"), datasets.exceptions.DatasetNotFoundError("no such set")]
)
def test_name_that_is_neither_local_nor_on_the_hub_is_an_error(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(FileNotFoundError, match="owner/name is no local file or folder"):
        load_split("owner/name", "train")


def test_a_split_that_the_hub_does_not_have_is_named(monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("Unknown split 'tset'. Should be one of ['train', 'test'].")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        ValueError, match="owner/name has no split 'tset' of 'main' that can be read: .*'train', 'test'"
    ):
        load_split("owner/name", "tset", configs=("main",))


@pytest.mark.parametrize("path", ["/nowhere/gsm8k", "./gsm8k", "~/gsm8k", "data/sets/gsm8k", "train.jsonl"])
def test_missing_path_is_an_error_without_asking_the_hub(path, hub):
    with pytest.raises(FileNotFoundError, match="Check the path"):
        load_split(path, "train")
    assert hub == []


def test_folder_without_the_split_names_what_it_holds(write_jsonl, tmp_path):
    write_jsonl("set/train.jsonl", ROWS)
    with pytest.raises(FileNotFoundError, match=r"no split 'test'.*found train\.jsonl"):
        load_split(str(tmp_path / "set"), "test")


def test_file_of_another_split_is_an_error(write_jsonl):
    with pytest.raises(ValueError, match="Pass `split='train'`"):
        load_split(str(write_jsonl("train.jsonl", ROWS)), "test")


def test_file_of_any_other_name_is_any_split(write_jsonl):
    assert len(load_split(str(write_jsonl("problems.jsonl", ROWS)), "test")) == len(ROWS)


@pytest.mark.parametrize(("value", "words"), [(5, "has no text for `question`"), ("a\0b", "holds a NUL character")])
def test_a_question_that_is_no_text_is_named(write_jsonl, value, words):
    path = write_jsonl("train.jsonl", [{"question": value, "answer": "#### 1"}])
    with pytest.raises(ValueError, match=f"Row 0 of .*train.jsonl {words}"):
        load_split(str(path), "train", columns=("question", "answer"), texts=("question",))


def test_text_in_another_encoding_is_named_with_its_line(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes('{"question": "a"}\n{"question": "ä"}\n'.encode("latin-1"))
    with pytest.raises(ValueError, match="train.jsonl is not UTF-8 text: line 2 has the byte 0xe4"):
        load_split(str(path), "train")


def test_compressed_files_are_read(tmp_path):
    with gzip.open(tmp_path / "train.jsonl.gz", "wt") as file:
        file.write('{"question": "a"}\n')
    assert load_split(str(tmp_path), "train")["question"] == ["a"]


def test_unknown_format_is_an_error(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("text")
    with pytest.raises(ValueError, match=r"must end in \.jsonl, \.json, \.parquet, \.csv"):
        load_split(str(path), "train")


def test_missing_columns_are_named_with_those_found(write_jsonl):
    path = write_jsonl("train.jsonl", [{"problem": "a", "answer": "5"}])
    with pytest.raises(
        ValueError, match="lacks the columns question: needed are question, answer, found are problem, answer"
    ):
        load_split(str(path), "train", columns=("question", "answer"))


def test_row_without_a_value_is_named(write_jsonl):
    path = write_jsonl("train.jsonl", [ROWS[0], {"question": "b"}])
    with pytest.raises(ValueError, match=r"Row 1 .* has no value for `answer`"):
        load_split(str(path), "train", columns=("question", "answer"))


@pytest.mark.parametrize("name", ["train.jsonl", "train.json", "train.parquet", "train.csv"])
def test_empty_file_is_an_error(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match="is empty"):
        load_split(str(tmp_path / name), "train")


@pytest.mark.parametrize(
    ("name", "text"), [("train.jsonl", "\n\n"), ("train.csv", "question,answer\n"), ("train.json", "[]")]
)
def test_file_without_rows_is_an_error(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="holds rows"):
        load_split(str(tmp_path / name), "train")


@pytest.mark.parametrize(
    ("line", "reason"), [('{"question": "b", "ans', "is no valid JSON"), ("[1]", "must hold a JSON object")]
)
def test_broken_line_is_named(tmp_path, line, reason):
    path = tmp_path / "train.jsonl"
    path.write_text('{"question": "a"}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=f"Line 3 of .* {reason}"):
        load_split(str(path), "train")


@pytest.mark.parametrize("name", ["train.parquet", "train.json"])
def test_unreadable_file_of_another_format_is_named(tmp_path, name):
    (tmp_path / name).write_text("no data")
    with pytest.raises(ValueError, match=rf"could not be read from .*{name}"):
        load_split(str(tmp_path / name), "train")


def test_max_samples_keeps_the_first_rows(write_jsonl):
    assert load_split(str(write_jsonl("train.jsonl", ROWS)), "train", max_samples=3).to_list() == ROWS[:3]


def test_max_samples_beyond_the_rows_keeps_all(write_jsonl):
    assert len(load_split(str(write_jsonl("train.jsonl", ROWS)), "train", max_samples=100)) == len(ROWS)


def test_seed_shuffles_before_rows_are_kept(write_jsonl):
    path = str(write_jsonl("train.jsonl", ROWS))
    drawn = [load_split(path, "train", max_samples=3, seed=seed).to_list() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2] and drawn[0] != ROWS[:3]


def test_max_samples_below_1_is_an_error(write_jsonl):
    with pytest.raises(ValueError, match="`max_samples` must be at least 1, or None for all rows, got 0"):
        load_split(str(write_jsonl("train.jsonl", ROWS)), "train", max_samples=0)
