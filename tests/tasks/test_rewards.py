"""The rewards of MATH, multiple choice and open-domain questions."""

import random
import sys
import threading
import time

import math_verify
import pytest
from math_verify.errors import TimeoutException

from hf_evidenceflow.tasks import math_reward, multiple_choice_reward, open_qa_reward
from hf_evidenceflow.tasks.math_reward import MAX_ANSWER_LENGTH, extract_math_answer, grade_math, last_boxed
from hf_evidenceflow.tasks.math_verification import (
    MAX_DEPTH,
    MAX_EXPRESSION_LENGTH,
    readable_expression,
)
from hf_evidenceflow.tasks.multiple_choice_reward import extract_choice
from hf_evidenceflow.tasks.open_qa_reward import extract_open_answer
from hf_evidenceflow.tasks.verifier import Verifier


REWARDS = (math_reward, multiple_choice_reward, open_qa_reward)
RIGHT = {math_reward: "7", multiple_choice_reward: "B", open_qa_reward: "Paris"}


@pytest.mark.parametrize("reward", REWARDS)
def test_reward_takes_strings_and_chat_messages(reward):
    gold = RIGHT[reward]
    chat = [{"role": "assistant", "content": f"Therefore #### {gold}"}]
    assert reward([f"#### {gold}"], [gold]) == reward([chat], [gold]) == [1.0]


@pytest.mark.parametrize("reward", REWARDS)
def test_reward_needs_exactly_one_marker(reward):
    gold = RIGHT[reward]
    assert reward([gold, f"#### {gold} #### {gold}", "####", ""], [gold] * 4) == [0.0] * 4


@pytest.mark.parametrize("reward", REWARDS)
def test_reward_counts_what_cannot_be_read(reward):
    logged = {}
    reward(["no marker", f"#### {RIGHT[reward]}"], ["B", "B"], log_metric=logged.__setitem__)
    assert logged["unparsable"] == 0.5


@pytest.mark.parametrize("reward", REWARDS)
def test_junk_completions_score_0(reward):
    junk = [None, 5, [], [None], {}, [{"content": 5}], object()]
    assert reward(junk, [RIGHT[reward]] * len(junk)) == [0.0] * len(junk)


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize("gold", [None, [], [None], "", " ", object(), float("nan")])
def test_gold_that_cannot_be_graded_by_is_an_error(reward, gold):
    with pytest.raises(ValueError, match="Gold 0 of the batch, in `answer`, cannot be graded by"):
        reward(["no answer"], [gold])


@pytest.mark.parametrize("gold", ["F", "B or C", 1])
def test_gold_of_multiple_choice_must_be_one_letter(gold):
    with pytest.raises(ValueError, match="must be a letter from A to E"):
        multiple_choice_reward(["#### B"], [gold])


@pytest.mark.parametrize("reward", REWARDS)
def test_answer_is_read_from_a_box_after_thoughts_and_headings(reward):
    gold = RIGHT[reward]
    text = f"<think>#### {gold}?</think>#### Step 1\nRead.\n#### $\\boxed{{\\text{{{gold}}}}}$"
    assert reward([text], [gold]) == [1.0]


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize(
    "piece",
    ["#", "a", "B ", "B. ", "the ", "answer is ", "$", "$a$", "\\(", "\\boxed{", "{", "(", " ", ",", "^9", "\\["],
)
def test_time_is_linear_in_the_length_of_the_completion(reward, piece):
    # 1 MB takes below half a second; quadratic work on it would take hours
    text = "#### " + piece * (1_000_000 // len(piece))
    start = time.perf_counter()
    reward([text], ["B"])
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("reward", REWARDS)
def test_no_text_raises(reward):
    rng = random.Random(0)
    pieces = [
        "a",
        "B",
        "the ",
        "1",
        ".",
        ")",
        "(",
        "$",
        "\\boxed{",
        "}",
        "\\frac",
        "{",
        "^",
        "!",
        "\\(",
        "\\)",
        " ",
        "\n",
        "|",
        "=",
        "\\",
        "²",
    ]
    for _ in range(40 if reward is math_reward else 2000):
        text = "#### " + "".join(rng.choice(pieces) for _ in range(rng.randrange(10)))
        assert reward([text], ["B"])[0] in (0.0, 1.0)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("\\frac{1}{2}", "\\frac12"),
        ("0.5", "\\frac{1}{2}"),
        ("$\\frac{1}{2}$", "\\frac{1}{2}"),
        ("\\(\\frac{1}{2}\\)", "\\frac{1}{2}"),
        ("\\[\\frac{1}{2}\\]", "\\frac{1}{2}"),
        ("The answer is $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("1+x^2", "x^2 + 1"),
        ("\\sqrt{32}", "4\\sqrt{2}"),
        ("$70,000", "70000"),
        ("\u22125", "-5"),
        ("18.", "18"),
        ("Evelyn", "\\text{Evelyn}"),
        ("(1, 2)", "(1,2)"),
        ("7", 7),
    ],
)
def test_equal_expressions_are_right(answer, gold):
    assert grade_math(f"#### {answer}", gold) == 1.0


@pytest.mark.parametrize(
    "answer", ["6", "5 or 6", "$5$ or 6", "$5 or $6", "\\boxed{5} or 6", "\\boxed{6}\\boxed{5}", "5} \\boxed{5", "5x"]
)
def test_other_expressions_are_wrong(answer):
    assert grade_math(f"#### {answer}", "5") == 0.0


def test_gold_of_math_may_be_the_whole_solution():
    assert grade_math("#### 2", "We get $1 = \\boxed{1}$, so $x = \\boxed{2}$.") == 1.0


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("a \\boxed{\\frac{1}{2}} b", "\\frac{1}{2}"),
        ("\\boxed{1} \\boxed{2}", "2"),
        ("$\\boxed 7$.", "7"),
        ("\\boxed{", None),
        ("\\boxed", None),
        ("none", None),
    ],
)
def test_last_box_is_found_with_its_nested_braces(text, content):
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    "text",
    [
        "9^{9^{9}}",
        "9^9^9",
        "2**2**99",
        "9^{99999}",
        "9^{-99999}",
        "10^{x^{y}}",
        "99999!",
        "9!!",
        "(9!)!",
        "2^{9!}",
        "2^9!",
        "9^{2\\cdot 9^9}",
        "",
        "{",
        "}{",
    ],
)
def test_expressions_that_could_compute_forever_are_unreadable(text):
    assert readable_expression(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "2^{2005}",
        "x^{2}+y^{2}",
        "10!",
        "x^2y^2",
        "(x^2)^3",
        "x^{a+1}y^{2}",
        "e^{-x}+x^2",
        "(x^2)(y^3)",
        "\\frac{1}{x^{2}}",
        "2^n",
    ],
)
def test_usual_powers_and_factorials_are_readable(text):
    assert readable_expression(text) == text


def test_expression_at_the_limits_is_readable_and_beyond_them_not():
    deep = "(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH
    assert readable_expression(deep) and readable_expression("1" * MAX_EXPRESSION_LENGTH)
    assert readable_expression(f"({deep})") is None and readable_expression("1" * (MAX_EXPRESSION_LENGTH + 1)) is None


def test_long_text_after_the_marker_is_no_expression():
    assert extract_math_answer("#### " + "so " * MAX_ANSWER_LENGTH + "$5$") is None


def test_math_is_graded_outside_the_main_thread():
    scores = []
    thread = threading.Thread(target=lambda: scores.append(grade_math("#### \\frac{1}{2}", "0.5")))
    thread.start()
    thread.join()
    assert scores == [1.0]


@pytest.mark.parametrize(
    ("error", "verdict"), [(TimeoutException, None), (RecursionError, False), (ValueError, False)]
)
def test_systems_without_fork_compare_in_this_process(monkeypatch, error, verdict):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("hf_evidenceflow.tasks.verifier.os.name", "nt")
    assert Verifier().equal("5", "5.0") is True
    monkeypatch.setattr(math_verify, "verify", fail)
    assert Verifier().equal("5", "5.0") is verdict


def test_missing_math_verify_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ImportError, match=r"pip install hf-evidenceflow\[math\]"):
        math_reward([], [])


@pytest.mark.parametrize(
    "answer",
    [
        "B",
        "b",
        "(B)",
        "(b).",
        "**B**",
        "B.",
        "The answer is B.",
        "Answer: (B)",
        "Option B",
        "B. A red cell",
        "B) 42",
        "(B) 42",
        "**B.** Vitamin C",
        "\\boxed{B}",
        "$\\boxed{\\text{B}}$",
        "\\text{B}",
        "\\boxed{\\textbf{(B)}}.",
        "B - because cells divide",
        "B, because cells divide",
        "B: cells",
        "`B`",
        "\uff22",
        "A closer look\nCells divide.\n#### B",
    ],
)
def test_one_letter_is_a_choice(answer):
    assert extract_choice(f"#### {answer}") == "B"


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "F",
        "1",
        "B or C",
        "B, C",
        "B/C",
        "BC",
        "B) and C",
        "B. or C.",
        "B. C. D.",
        "A red cell",
        "a cell",
        "vitamin C",
        "not B",
        "\\boxed{B} or \\boxed{C}",
        "\\boxed{B}\\boxed{C}",
        "B - C",
        "B or C\n#### B",
    ],
)
def test_text_that_is_not_one_choice_has_no_letter(answer):
    assert extract_choice(f"#### {answer}") is None


def test_wrong_letter_scores_0():
    assert multiple_choice_reward(["#### C"], ["B"]) == [0.0]


@pytest.mark.parametrize("answer", ["The Eiffel Tower", "eiffel tower.", " EIFFEL   TOWER!", '"Eiffel Tower"'])
def test_open_answers_are_compared_after_normalisation(answer):
    assert open_qa_reward([f"#### {answer}"], ["the Eiffel Tower"]) == [1.0]


@pytest.mark.parametrize("answer", ["Eiffel", "the Eiffel Tower in Paris", "tower Eiffel"])
def test_open_answers_must_match_whole(answer):
    assert open_qa_reward([f"#### {answer}"], ["Eiffel Tower"]) == [0.0]


def test_any_of_several_golds_is_right():
    assert open_qa_reward(["#### La Tour Eiffel"], [["Eiffel Tower", "la tour Eiffel"]]) == [1.0]


def test_articles_inside_words_are_kept():
    assert extract_open_answer("#### Athena and theatre") == "athena and theatre"


def test_answer_of_nothing_but_articles_and_punctuation_is_unreadable():
    assert extract_open_answer("#### The ...") is None
    assert open_qa_reward(["#### The ..."], ["Louvre"]) == [0.0]
