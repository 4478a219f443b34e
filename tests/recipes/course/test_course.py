"""The course's small world, its arguments and the run that all recipes share."""

import importlib
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


def test_a_sample_of_a_text_is_drawn_from_all_of_it(tmp_path):
    (tmp_path / "text.txt").write_text("<|endoftext|>".join(map(str, range(50))))
    first, second = (
        course_documents(
            CourseArguments(text_file=str(tmp_path / "text.txt"), max_documents=20, shuffle_documents=True, seed=seed)
        )
        for seed in (3, 4)
    )
    assert len(first) == 20 and first != second and max(map(int, first)) > 20


def test_a_missing_text_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.txt"):
        course_documents(CourseArguments(text_file=str(tmp_path / "absent.txt")))


def test_two_sources_of_text_are_refused():
    with pytest.raises(ValueError, match="not both"):
        CourseArguments(text_file="a.txt", dataset_name="b")


def test_no_documents_are_refused():
    with pytest.raises(ValueError, match="`max_documents` must be at least 1, got 0"):
        CourseArguments(max_documents=0)


@pytest.mark.parametrize(
    "recipe, arguments, wrong",
    [
        ("word_vectors", "WordVectorsArguments", {"epochs": 0}),
        ("contextual_pretraining", "ContextualPretrainingArguments", {"bert_steps": 0}),
        ("seq2seq_pretraining", "Seq2SeqPretrainingArguments", {"longest_gap": 0}),
        ("peft_methods", "PeftMethodsArguments", {"lora_ranks": [8, 0]}),
        ("prompt_search", "PromptSearchArguments", {"budget": -1}),
        ("instruction_tuning", "InstructionTuningArguments", {"rollouts": 0}),
        ("scaling_laws", "ScalingLawsArguments", {"budgets": []}),
        ("compression", "CompressionArguments", {"temperature": 0.0}),
        ("fast_inference", "FastInferenceArguments", {"draft_counts": [0]}),
        ("fast_inference", "FastInferenceArguments", {"num_blocks": 3}),
        ("fast_inference", "FastInferenceArguments", {"early_exit_depth": 8}),
        ("compression", "CompressionArguments", {"qat_bits": 9}),
        ("compression", "CompressionArguments", {"group_size": 48}),
        ("scaling_laws", "ScalingLawsArguments", {"widths": [12]}),
        ("contextual_pretraining", "ContextualPretrainingArguments", {"max_words": 1}),
    ],
)
def test_a_wrong_number_or_method_is_an_error_before_anything_is_trained(recipe, arguments, wrong):
    arguments = getattr(importlib.import_module(f"hf_evidenceflow.recipes.course.{recipe}.run"), arguments)
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` .*(must be|must divide|is empty|do not hold)"):
        arguments(**wrong)
    if recipe != "peft_methods":  # whose names depend on the base model; `main` checks them first
        with pytest.raises(ValueError, match="`methods` has 'sideways', which is no part of any of"):
            arguments(methods=["sideways"])


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


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("contextual_pretraining", ["--text_file={}/short.txt"], "two are needed to pair one with another"),
        ("contextual_pretraining", ["--text_file={}/short.txt", "--methods=elmo"], "No held-out text has two words"),
        ("contextual_pretraining", ["--hidden_size=3"], "`hidden_size` must be even.* got 3"),
        ("fast_inference", ["--max_documents=30", "--prompt_tokens=400", "--num_blocks=90"], "held-out documents has"),
        ("prompt_search", ["--questions_file={}/one.jsonl", "--manual_prompt=is"], "at least 2 groups"),
    ],
)
def test_text_that_does_not_do_is_refused_before_anything_is_trained(name, options, message, tmp_path, monkeypatch):
    (tmp_path / "short.txt").write_text("one two three")
    (tmp_path / "one.jsonl").write_text('{"query": "one", "answer": " two"}')
    monkeypatch.setattr("transformers.Trainer.train", lambda self: pytest.fail("something was trained"))
    recipe = importlib.import_module(f"hf_evidenceflow.recipes.course.{name}.run")
    with pytest.raises(ValueError, match=message):
        recipe.main([f"--output_dir={tmp_path}/out", *(option.format(tmp_path) for option in options)])
