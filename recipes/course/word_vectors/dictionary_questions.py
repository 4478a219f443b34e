"""Analogies from the heads of a dictionary's entries, which name the forms of a word.

The dictionary is Webster's of 1913 (GCIDE's text, an entry per document):

    Easy, a. [Compar. {Easier}; superl. {Easiest}.] ...
    Walk (w[add]k), v. i. [imp. & p. p. {Walked}; p. pr. & vb. n. {Walking}.] ...
    Child (ch[imac]ld), n.; pl. {Children} ...
    Quickly, adv. ...
"""

import re
from collections.abc import Iterable, Mapping


_HEAD = re.compile(r"([A-Z][a-z]+)\b(?: \([^)]*\))?, (a|adv|n|v)\.")
_FORM = r"\s+\{([A-Z][a-z]+)\}"
_FORMS = {
    "comparative": ("a", re.compile(r"\[Compar\." + _FORM)),
    "superlative": ("a", re.compile(r"superl\." + _FORM)),
    "past": ("v", re.compile(r"\[imp\. & p\. p\." + _FORM)),
    "participle": ("v", re.compile(r"p\. pr\. & vb\. n\." + _FORM)),
    "plural": ("n", re.compile(r"n\.; pl\." + _FORM)),
}
_HEAD_LENGTH = 300


def dictionary_pairs(entries: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
    """
    The words of a dictionary with their forms.

    Args:
        entries (`Iterable[str]`):
            Entries in the form above; what is in another form is passed over.

    Returns:
        `dict[str, list[tuple[str, str]]]`: by relation (`"comparative"`, `"superlative"`, `"past"`, `"participle"`,
        `"plural"`, `"adverb"`), pairs in lower case and in the alphabet's order. An adverb is a head in "-ly" whose
        beginning is the head of an adjective. A word with two different forms is left out.

    Raises:
        `ValueError`: if there is no pair at all.
    """
    found: dict[str, dict[str, set[str]]] = {relation: {} for relation in (*_FORMS, "adverb")}
    heads: dict[str, set[str]] = {"a": set(), "adv": set()}
    for entry in entries:
        head = _HEAD.match(entry.lstrip())
        if head is None:
            continue
        word, part = head[1].lower(), head[2]
        heads.setdefault(part, set()).add(word)
        for relation, (wanted, pattern) in _FORMS.items():
            form = pattern.search(entry, 0, _HEAD_LENGTH)
            if part == wanted and form is not None:
                found[relation].setdefault(word, set()).add(form[1].lower())
    for adverb in heads["adv"]:
        if adverb.endswith("ly") and adverb[:-2] in heads["a"]:
            found["adverb"][adverb[:-2]] = {adverb}
    pairs = {
        relation: sorted((word, *forms) for word, forms in members.items() if len(forms) == 1 and word not in forms)
        for relation, members in found.items()
    }
    if not any(pairs.values()):
        raise ValueError(
            "The dictionary has no head of an entry with a form of its word, such as `Easy, a. [Compar. {Easier}; "
            "superl. {Easiest}.]`. Give the text of Webster's dictionary of 1913."
        )
    return pairs


def frequent_questions(
    pairs: Mapping[str, Iterable[tuple[str, str]]], counts: Mapping[str, int], pairs_per_relation: int = 30
) -> list[tuple[str, str, str, str, str]]:
    """
    All questions a : b = c : d of the pairs that the text has most often.

    Args:
        pairs (`Mapping[str, Iterable[tuple[str, str]]]`):
            Pairs by relation.
        counts (`Mapping[str, int]`):
            Count of each word in the text.
        pairs_per_relation (`int`, *optional*, defaults to `30`):
            Pairs to keep of each relation: those whose rarer word is most frequent.

    Returns:
        `list[tuple[str, str, str, str, str]]`: as [`~recipes.course.shared.corpus.analogies`].
    """
    questions = []
    for relation, members in pairs.items():
        ranked = sorted(members, key=lambda pair: (-min(counts.get(word, 0) for word in pair), pair))
        kept = [pair for pair in ranked[:pairs_per_relation] if all(word in counts for word in pair)]
        questions += [(relation, *first, *second) for first in kept for second in kept if first != second]
    return questions
