import random
import time
from fractions import Fraction

import pytest

from hf_evidenceflow.tasks.numbers import MAX_NUMBER_LENGTH, format_number, last_number, parse_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", Fraction(18)),
        ("70,000", Fraction(70000)),
        ("1,234,567.50", Fraction(123456750, 100)),
        ("$70,000", Fraction(70000)),
        ("\\$70,000", Fraction(70000)),
        ("50%", Fraction(50)),
        (".5", Fraction(1, 2)),
        ("$.50", Fraction(1, 2)),
        ("18.", Fraction(18)),
        ("18.00", Fraction(18)),
        ("18,", Fraction(18)),
        ("00018", Fraction(18)),
        ("1/2", Fraction(1, 2)),
        ("1 / 2", Fraction(1, 2)),
        ("1,000/.5", Fraction(2000)),
        ("18 dollars and cents", Fraction(18)),
        ("5 m²", Fraction(5)),
        ("18!", Fraction(18)),
        ("The answer is 18.", Fraction(18)),
        ("**18**", Fraction(18)),
        ("\\boxed{18}", Fraction(18)),
        ("So...5", Fraction(5)),
        ("\\frac{1}{2}", Fraction(1, 2)),
        ("-\\dfrac12", Fraction(-1, 2)),
        ("\\frac{-1,000}{8}", Fraction(-125)),
        ("2 1/2", Fraction(5, 2)),
        ("-2\\frac{1}{2}", Fraction(-5, 2)),
        ("5½ pies", Fraction(11, 2)),
        ("is -¾", Fraction(-3, 4)),
        ("1\u20442", Fraction(1, 2)),
        ("1.5e3", Fraction(1500)),
        ("1e3", Fraction(1000)),
        ("2E-1", Fraction(1, 5)),
        ("1.5 \\times 10^{3}", Fraction(1500)),
        ("1.5 × 10^3", Fraction(1500)),
        ("1\u00a0000", Fraction(1000)),
        ("1\u2009234\u202f567", Fraction(1234567)),
        ("70\\,000", Fraction(70000)),
        ("10,\\!000", Fraction(10000)),
        ("70{,}000", Fraction(70000)),
        ("$1,000.00", Fraction(1000)),
        ("50\\%", Fraction(50)),
        ("\uff11\uff18\uff0e\uff15", Fraction(37, 2)),
        ("18\\text{ dollars}", Fraction(18)),
    ],
)
def test_one_number_is_read_exactly(text, number):
    assert parse_number(text) == number


@pytest.mark.parametrize(
    "text",
    ["-5", "\u22125", "\u20135", "- 5", "-$5", "$-5", "-5%", "(-5)", "-(5)", "x = - 5", "x=-5", "is -5", "= -5/1"],
)
def test_minus_sign_makes_a_number_negative(text):
    assert parse_number(text) == -5


@pytest.mark.parametrize("text", ["+5", "+ 5", "+$5"])
def test_plus_sign_changes_nothing(text):
    assert parse_number(text) == 5


@pytest.mark.parametrize(
    "text",
    ["18-20", "18 or 20", "18 = 18.00", "2 3/2", "2  1/2", "3/4/5", "5 (since 2+3=5)", "1e3x", "1 000", "5 m2", "2^3"],
)
def test_second_number_leaves_the_answer_open(text):
    assert parse_number(text) is None


@pytest.mark.parametrize(
    "text", ["x - 5", "x-5", "x/5", "\\sqrt{5}", "√5", "--5", "f(x) + 5", "\\frac{x}{2}", "2\\pi"]
)
def test_number_after_an_operator_is_part_of_an_expression(text):
    assert parse_number(text) is None


@pytest.mark.parametrize("text", ["1,2", "70,00", "1,0000", "1,234,5", "1.000,50"])
def test_commas_that_separate_no_thousands_are_unreadable(text):
    assert parse_number(text) is None


@pytest.mark.parametrize(
    "text", ["", " ", "no number", "-", "$", ".", ",", "1/0", "1/0.0", "0/0", "5²", "٣", "5 or ٣", "1e101", "1.2.3"]
)
def test_text_without_a_readable_number_has_none(text):
    assert parse_number(text) is None


@pytest.mark.parametrize("junk", [None, 5, 5.0, True, ["5"], {"text": "5"}, b"5"])
def test_junk_has_no_number(junk):
    assert parse_number(junk) is None and last_number(junk) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 boxes of 4 make 12 pens.", 12),
        ("3 - 5", 5),
        ("3-5", 5),
        ("it is -5", -5),
        ("10 to 70,000.", 70000),
        ("2, 1/2", Fraction(1, 2)),
        ("10 of 2 1/2", Fraction(5, 2)),
        ("so 1.5e3", 1500),
    ],
)
def test_last_number_wins_when_reading_flexibly(text, number):
    assert last_number(text) == number


@pytest.mark.parametrize("text", ["5 then 1/0", "5 then 1,2", "none"])
def test_last_number_does_not_fall_back_to_an_earlier_one(text):
    assert last_number(text) is None


def test_number_at_the_length_limit_is_read():
    assert parse_number("9" * MAX_NUMBER_LENGTH) == int("9" * MAX_NUMBER_LENGTH)


@pytest.mark.parametrize("digits", [MAX_NUMBER_LENGTH + 1, 5000, 10**6])
def test_number_beyond_the_length_limit_is_unreadable(digits):
    assert parse_number("9" * digits) is None and last_number("9" * digits) is None


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (Fraction(70000), "70000"),
        (Fraction(-1, 2), "-0.5"),
        (Fraction(1, 3), "1/3"),
        (Fraction(0), "0"),
        (Fraction(1, 10**9), "0.000000001"),
        (Fraction(12345678901234567890), "12345678901234567890"),
    ],
)
def test_numbers_are_written_plainly(number, text):
    assert format_number(number) == text


def test_writing_a_readable_number_never_raises():
    # The longest decimals that the length limit lets through: a division by a power of two
    power = 2 ** (MAX_NUMBER_LENGTH * 3)
    smallest = parse_number(f".{'0' * (MAX_NUMBER_LENGTH - 2)}1/{power}")
    assert Fraction(format_number(smallest)) == smallest


def test_reading_what_was_written_gives_the_same_number():
    rng = random.Random(0)
    for _ in range(500):
        number = Fraction(rng.randint(-(10**6), 10**6), rng.choice([1, 2, 3, 7, 10, 125, 1000]))
        assert parse_number(format_number(number)) == number


def test_no_text_raises():
    rng = random.Random(0)
    alphabet = "0123456789,./-+\u2212$%#()[]{}\\ \n\tabx=^²½٣\ud800\u0000"
    for _ in range(5000):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(30)))
        parse_number(text)
        last_number(text)


@pytest.mark.parametrize(
    "piece",
    [
        "1",
        "1,",
        "1.",
        "1/",
        "1 ",
        "111,",
        "-",
        "- ",
        "-$",
        "$",
        ".",
        ",",
        "/",
        "(",
        " ",
        "a",
        "½",
        "²",
        "- 1",
        "=-",
        "1e",
        "1 1/",
        "1\u00a0",
        "\\frac{1",
        "1*10^",
    ],
)
def test_time_is_linear_in_the_length_of_the_text(piece):
    # 1 MB takes below half a second; quadratic work on it would take hours
    text = piece * (1_000_000 // len(piece))
    start = time.perf_counter()
    parse_number(text)
    last_number(text)
    assert time.perf_counter() - start < 10
