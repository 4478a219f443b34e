"""Rows in the formats of the published data sets."""

GSM8K = {"question": "How much?", "answer": "2*35,000=<<2*35000=70000>>70,000\n#### 70,000"}

PLATINUM = GSM8K | {"cleaning_status": "consensus"}

MATH = {"problem": "Find $x$.", "solution": "So $x=\\boxed{\\frac{1}{2}}$.", "level": "Level 1", "type": "Algebra"}

MATH_500 = MATH | {"answer": "\\frac{1}{2}", "subject": "Algebra", "level": 1, "unique_id": "test/algebra/1.json"}

AIME = {"id": "0", "problem": "Find the sum of all integer bases.", "answer": "070"}

MMLU = {"question": "Which?", "subject": "astronomy", "choices": ["Sun", "Moon", "Mars"], "answer": 2}

ARC = {"id": "1", "question": "Which?", "choices": {"text": ["Sun", "Moon"], "label": ["1", "2"]}, "answerKey": "2"}

GPQA = {
    "Question": "Which is it?",
    "Correct Answer": "Sun",
    "Incorrect Answer 1": "Moon",
    "Incorrect Answer 2": "Mars",
    "Incorrect Answer 3": "Venus",
}

QA = {"question": "Where?", "contexts": ["One.", "Two.", "Three.", "Four."], "golden_answers": ["Paris", "Lutetia"]}

OWN = {"question": "Which cup?", "answer": "the red cup", "traces": [["red"], ["blue"]]}
