"""Just enough English verb forms to turn a statement into a question."""

from __future__ import annotations

_IRREGULAR = """
ate eat|arose arise|became become|began begin|bore bear|broke break|brought bring|built build|came come|caught catch|
chose choose|dealt deal|drank drink|drew draw|drove drive|fell fall|felt feel|fled flee|flew fly|forbade forbid|
fought fight|found find|gave give|got get|grew grow|had have|has have|heard hear|held hold|hid hide|kept keep|knew know|
laid lay|led lead|left leave|lent lend|lost lose|made make|meant mean|met meet|overthrew overthrow|paid pay|ran run|
rode ride|rose rise|said say|sang sing|sank sink|sat sit|saw see|sent send|shot shoot|slept sleep|sold sell|
sought seek|spent spend|spoke speak|stood stand|struck strike|swept sweep|swore swear|taught teach|thought think|
threw throw|told tell|took take|understood understand|undertook undertake|went go|withdrew withdraw|won win|
wore wear|wrote write
"""
BASE_FORM: dict[str, str] = {entry.split()[0]: entry.split()[1] for entry in _IRREGULAR.replace("\n", "").split("|")}
_ENDINGS = (("ied", "y"), ("ies", "y"), ("ed", ""), ("ed", "e"), ("es", ""), ("es", "e"), ("s", ""))


def is_past(word: str) -> bool:
    """Whether a lower-case word looks like a past form ("ordered", "wrote"); participles look the same."""
    return (word in BASE_FORM and word != "has") or (word.endswith("ed") and len(word) > 4)


def base_forms(word: str) -> list[str]:
    """Candidates for a verb's base form; the model, which knows English, picks the right one.

    Example:
        >>> base_forms("wrote"), base_forms("planned")
        (['write'], ['plann', 'planne', 'plan'])
    """
    if word in BASE_FORM:
        return [BASE_FORM[word]]
    forms = [word[: -len(end)] + put for end, put in _ENDINGS if word.endswith(end) and len(word) > len(end) + 1]
    forms += [form[:-1] for form in forms if len(form) > 3 and form[-1] == form[-2]]
    return list(dict.fromkeys(forms))
