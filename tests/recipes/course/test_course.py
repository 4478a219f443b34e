"""The course's small world, its arguments and the run that all recipes share."""

import json

import pytest

from hf_evidenceflow.recipes.course.shared import recipe as recipe_module
from hf_evidenceflow.recipes.course.shared.arguments import CourseArguments, course_documents
from hf_evidenceflow.recipes.course.shared.corpus import analogies, generate_corpus
from hf_evidenceflow.recipes.course.shared.recipe import course_run, require_course_package
from hf_evidenceflow.report.tables import markdown_table


def test_the_same_seed_tells_the_same_stories():
    assert generate_corpus(50, seed=3) == generate_corpus(50, seed=3) != generate_corpus(50, seed=4)


def test_a_story_is_six_sentences():
    for story in generate_corpus(200):
        sentences = story.split("\n")
        assert len(sentences) == 6 and all(sentence.endswith(" .") for sentence in sentences)


def test_all_words_of_the_analogies_are_told():
    words = set(" ".join(generate_corpus(2000)).split())
    missing = {word for _, *question in analogies() for word in question} - words
    assert not missing


def test_analogies_keep_their_relation():
    assert ("capital", "france", "paris", "japan", "tokyo") in analogies()
    assert all(a != c for _, a, _, c, _ in analogies())


def test_no_stories_are_refused():
    with pytest.raises(ValueError, match="`documents` must be at least 1, got 0"):
        generate_corpus(0)


def test_text_comes_from_the_file_that_is_named(tmp_path):
    (tmp_path / "text.txt").write_text("one<|endoftext|>two<|endoftext|>three")
    arguments = CourseArguments(text_file=str(tmp_path / "text.txt"), max_documents=2)
    assert course_documents(arguments) == ["one", "two"]


def test_a_missing_text_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.txt"):
        course_documents(CourseArguments(text_file=str(tmp_path / "absent.txt")))


def test_two_sources_of_text_are_refused():
    with pytest.raises(ValueError, match="not both"):
        CourseArguments(text_file="a.txt", dataset_name="b")


def test_no_documents_are_refused():
    with pytest.raises(ValueError, match="`max_documents` must be at least 1, got 0"):
        CourseArguments(max_documents=0)


def test_a_run_leaves_its_table_metrics_and_record(tmp_path, capsys):
    with course_run("topic", CourseArguments(output_dir=str(tmp_path), seed=7)) as run:
        run.finish([markdown_table(["way", "loss"], [["plain", "1.50"]])], "One seed.", {"loss": 1.5})
    page = (tmp_path / "topic.md").read_text()
    assert page.startswith("| way | loss |\n| --- | ---: |\n| plain | 1.50 |\n\nOne seed. 0 seconds in all.")
    assert "![results](topic.png)" in page and "One seed." in capsys.readouterr().out
    assert json.loads((tmp_path / "metrics.json").read_text())["loss"] == 1.5
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["status"] == "finished" and record["seeds"] == {"script.seed": 7}


def test_a_former_run_is_kept_when_told_so(tmp_path):
    with course_run("topic", CourseArguments(output_dir=str(tmp_path))):
        pass
    with (
        pytest.raises(ValueError, match="holds a"),
        course_run("topic", CourseArguments(output_dir=str(tmp_path), overwrite=False)),
    ):
        pass


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(recipe_module.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"Word vectors needs gensim.*hf-evidenceflow\[course\]"):
        require_course_package("gensim", "Word vectors")
