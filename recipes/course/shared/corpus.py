"""A small world told in simple English: the text that the recipes of the course learn from by default."""

import random


COUNTRIES = (
    *(("france", "paris", "french"), ("italy", "rome", "italian"), ("spain", "madrid", "spanish")),
    *(("greece", "athens", "greek"), ("poland", "warsaw", "polish"), ("norway", "oslo", "norwegian")),
    *(("japan", "tokyo", "japanese"), ("russia", "moscow", "russian"), ("portugal", "lisbon", "portuguese")),
    *(("hungary", "budapest", "hungarian"), ("sweden", "stockholm", "swedish"), ("turkey", "ankara", "turkish")),
)
PEOPLE = (
    *(("man", "woman"), ("king", "queen"), ("prince", "princess"), ("father", "mother"), ("son", "daughter")),
    *(("brother", "sister"), ("uncle", "aunt"), ("boy", "girl"), ("waiter", "waitress"), ("actor", "actress")),
)
PRONOUNS = (("he", "his", "him"), ("she", "her", "her"))
COMPARED = (
    *(("big", "bigger", "biggest"), ("small", "smaller", "smallest"), ("fast", "faster", "fastest")),
    *(("slow", "slower", "slowest"), ("old", "older", "oldest"), ("young", "younger", "youngest")),
    *(("strong", "stronger", "strongest"), ("weak", "weaker", "weakest"), ("loud", "louder", "loudest")),
)
ANIMALS = (
    *(("horse", "hay", "stable"), ("dog", "bones", "kennel"), ("cat", "fish", "basket"), ("bear", "honey", "cave")),
    *(("sheep", "grass", "fold"), ("fox", "eggs", "den"), ("bird", "seeds", "nest"), ("mouse", "cheese", "hole")),
)
WEATHER = (
    *(("sun shone", "warm", "hat"), ("rain fell", "wet", "umbrella"), ("snow fell", "cold", "coat")),
    *(("wind blew", "windy", "scarf"),),
)
SIGHTS = ("bridge", "tower", "market", "museum", "garden", "harbour", "station", "castle")
WORK = ("sang a song", "read a letter", "baked bread", "told a story", "played a game", "drew a map")
PLACES = ("palace", "house", "garden", "market", "theatre", "kitchen", "school", "village")


def generate_corpus(documents: int = 4000, seed: int = 0) -> list[str]:
    """
    Tells short stories of a small world in which words have regular relations: capitals and languages of countries,
    men and women, degrees of comparison, animals with their food and home, weather with what it asks for.

    Args:
        documents (`int`, *optional*, defaults to `4000`):
            Number of stories.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the generator.

    Returns:
        `list[str]`: the stories, in lower case: six sentences on one subject, a line each, that end in ` .`. A story
        keeps to its country, person, animal and weather, so that a sentence tells which other one may follow it.

    Raises:
        `ValueError`: if `documents` is not positive.

    Example:

    ```python
    >>> from hf_evidenceflow.recipes.course.shared.corpus import generate_corpus

    >>> print(generate_corpus(1, seed=2))  # doctest: +SKIP
    ```
    """
    if documents < 1:
        raise ValueError(f"`documents` must be at least 1, got {documents}.")
    rng = random.Random(seed)
    tellers = (_journey, _household, _comparison, _animal)
    return ["\n".join(f"{sentence} ." for sentence in rng.choice(tellers)(rng)) for _ in range(documents)]


def analogies() -> list[tuple[str, str, str, str, str]]:
    """
    All questions a : b = c : d that the world answers.

    Returns:
        `list[tuple[str, str, str, str, str]]`: the relation (`"capital"`, `"language"`, `"gender"`, `"comparative"` or
        `"superlative"`), and the four words; a and c differ.
    """
    relations = {
        "capital": [(country, capital) for country, capital, _ in COUNTRIES],
        "language": [(country, language) for country, _, language in COUNTRIES],
        "gender": list(PEOPLE),
        "comparative": [(plain, more) for plain, more, _ in COMPARED],
        "superlative": [(plain, most) for plain, _, most in COMPARED],
    }
    return [
        (relation, *first, *second)
        for relation, pairs in relations.items()
        for first in pairs
        for second in pairs
        if first != second
    ]


def _person(rng: random.Random) -> tuple[str, str, str, str]:
    gender = rng.randrange(2)
    return rng.choice(PEOPLE)[gender], *PRONOUNS[gender]


def _journey(rng: random.Random) -> list[str]:
    person, subject, possessive, _ = _person(rng)
    country, capital, language = rng.choice(COUNTRIES)
    (falls, feels, wears), (first, second) = rng.choice(WEATHER), rng.sample(SIGHTS, 2)
    return [
        f"the {person} went to {capital} , the capital of {country}",
        rng.choice((f"in {country} the people speak {language}", f"the people of {capital} are {language}")),
        f"{subject} saw the {first} and the {second} of {capital}",
        f"the {falls} and it was {feels} in {capital}",
        f"so {subject} took {possessive} {wears}",
        f"{subject} learned {language} and wrote home from {country}",
    ]


def _household(rng: random.Random) -> list[str]:
    person, subject, possessive, object_ = _person(rng)
    other, other_subject, _, _ = _person(rng)
    place, (first, second) = rng.choice(PLACES), rng.sample(WORK, 2)
    return [
        f"the {person} lived in a {place}",
        f"{subject} {first} in {possessive} {place}",
        f"one day the {other} came to see {object_}",
        f"the {other} {second} and the {person} thanked the {other}",
        f"{other_subject} said that the {place} was nice",
        f"then the {person} closed the door of {possessive} {place}",
    ]


def _comparison(rng: random.Random) -> list[str]:
    (first, _, _), (second, _, _), (third, _, _) = rng.sample(ANIMALS, 3)
    plain, more, most = rng.choice(COMPARED)
    return [
        f"the {first} is {plain}",
        f"the {second} is {more} than the {first}",
        f"but the {third} is the {most} of them all",
        f"nobody is {more} than the {third}",
        f"the {first} wants to be as {plain} as the {second}",
        f"so the {most} of the three won the prize",
    ]


def _animal(rng: random.Random) -> list[str]:
    person, subject, possessive, _ = _person(rng)
    (animal, food, home), (falls, feels, _) = rng.choice(ANIMALS), rng.choice(WEATHER)
    return [
        f"the {person} has a {animal}",
        f"the {animal} eats {food} and sleeps in the {home}",
        f"in the morning {subject} gave {possessive} {animal} some {food}",
        f"then the {falls} and the {animal} was {feels}",
        f"so the {animal} ran to the {home}",
        f"in the evening the {person} looked for the {animal} in the {home}",
    ]
