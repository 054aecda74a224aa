"""Figures: what texts say, when two are the same, what a passage prints, and arithmetic over them."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from optimsyn.data.answer_metrics import all_given, all_given_f1, exact_match, token_f1
from optimsyn.data.figures import Derivation, DerivationError, Printed, compare, parse

AMOUNTS = st.decimals(min_value="-999999999", max_value="999999999", places=2, allow_nan=False)
GROUPINGS = (("", "."), (",", "."), (" ", "."), ("\u202f", ","), ("'", "."), (".", ","))


def shown(value: Decimal, group: str, point: str, *, minus: str = "-") -> str:
    """A number as people print it."""
    text = f"{abs(value):,.2f}".replace(",", "\0").replace(".", point).replace("\0", group)
    return (minus if value < 0 else "") + text


@given(AMOUNTS, st.sampled_from(GROUPINGS), st.sampled_from("-−–"), st.sampled_from(["", "$", "%", "€"]))
def test_a_printed_number_is_read_back(value: Decimal, marks: tuple[str, str], minus: str, unit: str) -> None:
    text = shown(value, *marks, minus=minus)
    text = f"{text}{unit}" if unit == "%" else f"{text} {unit}".strip()
    (figure,) = parse(text)
    assert (figure.value, figure.unit, figure.percent) == (Fraction(value), unit, unit == "%")
    assert text[figure.start : figure.end] == text
    (amid,) = parse(f"It was {text} then.")
    assert amid.value == figure.value


@given(AMOUNTS, st.sampled_from([(3, "thousand"), (6, "million"), (9, "bn"), (6, "Mio."), (8, "億"), (4, "만")]))
def test_scales_are_powers_of_ten(value: Decimal, scale: tuple[int, str]) -> None:
    (figure,) = parse(f"${shown(abs(value), ',', '.')} {scale[1]}")
    assert (figure.amount, figure.unit) == (Fraction(abs(value)) * 10 ** scale[0], "$")


@given(st.integers(1, 999), st.sampled_from(["٠١٢٣٤٥٦٧٨٩", "०१२३४५६७८९", "０１２３４５６７８９"]))
def test_digits_of_other_scripts(value: int, digits: str) -> None:
    assert [figure.value for figure in parse(str(value).translate(str.maketrans("0123456789", digits)))] == [value]


@given(AMOUNTS, st.sampled_from(GROUPINGS), st.sampled_from(GROUPINGS))
def test_what_is_equal_and_what_is_not(value: Decimal, one: tuple[str, str], other: tuple[str, str]) -> None:
    left, right = shown(value, *one), shown(value, *other)
    assert compare(left, left)
    assert compare(left, right)
    assert compare(right, left)
    assert exact_match(left, [right])
    assert token_f1(left, [right]) == 1
    assume(value)
    for wrong in (-value, value / 10, value * 10, value + Decimal("0.01"), value + 1):
        for text in (f"{wrong:f}", f"{wrong:f} million"):
            assert not compare(text, left)
            assert not compare(left, text)
            assert not exact_match(left, [text])
            assert token_f1(text, [left]) == 0


@given(st.text(max_size=30), st.text(max_size=30))
def test_laws_of_any_texts(left: str, right: str) -> None:
    assert compare(left, right) == (compare(right, left))
    assert exact_match(left, [right]) == exact_match(right, [left])
    assert exact_match(left, [left])
    assert token_f1(left, [right]) == pytest.approx(token_f1(right, [left]))
    for figure in parse(left):
        assert left[figure.start : figure.end].strip()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("€2.5 billion", "€2,500 million"),
        ("USD 40", "$40"),
        ("12,5 Mio. Euro", "12.5 million euros"),
        ("(3.1)", "-3.1"),
        ("$(40) million", "-$40 million"),
        ("minus 4 °C", "−4 °C"),
        ("forty-two ships", "42 ships"),
        ("three hundred and five", "305"),
        ("three quarters of 3/4", "three quarters of 0.75"),
        ("2½ hours", "2.5 hours"),
        ("18 per cent", "18%"),
        ("4.5 kilograms", "4.5 kg"),
        ("2.640", "2.640,0"),
        ("12 345,60", "12.345,6"),
        ("the 7 hills.", "seven hills"),
        ("1,24,500", "124500"),
        ("3,5", "3.5"),
    ],
)
def test_equal_figures(one: str, other: str) -> None:
    assert exact_match(one, [other])
    assert exact_match(other, [one])
    assert token_f1(one, [other]) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("31", "-3.1"),
        ("31", "3.1"),
        ("34", "3/4"),
        ("1845", "18:45"),
        ("2640", "2.640"),
        ("2,640", "2.640"),
        ("18", "18%"),
        ("18%", "0.18"),
        ("$5", "€5"),
        ("5 m", "5 km"),
        ("5G", "5 g"),
        ("F#", "F"),
        ("C++", "C"),
        ("A+", "A-"),
        ("1.12", "1.1.2"),
        ("v1.2", "v12"),
        ("2021-03-04", "2021 03 04"),
        ("007", "7"),
        ("(3.1)", "3.1"),
        ("10²", "102"),
    ],
)
def test_figures_that_differ(one: str, other: str) -> None:
    assert not exact_match(one, [other])
    assert not exact_match(other, [one])


@pytest.mark.parametrize("text", ["COVID-19", "B12", "the 20th", "10:30", "2019-03-04", "1990–95", "1.2.3", "24/7"])
def test_codes_dates_and_times_are_no_figures(text: str) -> None:
    assert parse(text) == []


def test_a_tolerance_is_relative_and_keeps_sign_and_unit() -> None:
    assert compare("$101", "$100", 0.01)
    assert not compare("$102", "$100", 0.01)
    assert not compare("$-100", "$100", 0.5)
    assert not compare("€100", "$100", 0.5)
    assert exact_match("about 101 km", ["about 100 km"], tolerance=0.01)
    assert not exact_match("about 101 km", ["about 100 km"])
    assert token_f1("101 km", ["100 km"], tolerance=0.01) == 1
    assert token_f1("101 km", ["100 km"]) == 0


def test_all_items_of_an_answer_count_in_any_order() -> None:
    years = ["2019", "2018"]
    assert all_given("2018 and 2019", years)
    assert all_given("2019; 2018", years)
    assert not all_given("2019", years)
    assert not all_given("2019, 2018 and 2017", years)
    assert not all_given("2019 and 2019", years)
    islands = ["Trinidad and Tobago", "Saint Kitts and Nevis"]
    assert all_given("Saint Kitts and Nevis, and Trinidad and Tobago.", islands)
    assert all_given("$1,200 and €3.5 million", ["€3,500,000", "$1200"])
    assert all_given_f1("2018 and 2019", years) == 1
    assert all_given_f1("2018", years) == pytest.approx(2 / 3)
    assert not all_given("", years)


PASSAGE = (
    "Harlow Mills sold cloth for $2,318.6 million in 2021, after $1,940.0 million in 2020. Costs fell by 3.5 %. "
    "The strike began on 2021-03-04.\n\n| in millions | 2021 | 2020 |\n| Profit | (42.7) | 18.9 |\n| Tax | – | 1.2 |"
)


@pytest.mark.parametrize(
    "text",
    ["$2318.6 million", "$2,318.6 million", "$2.3186 billion", "2,318.6", "-3.5%", "-42.7 million", "42.7",
     "18.9 million", "2021", "0", "4 March"],
)  # fmt: skip
def test_a_passage_prints(text: str) -> None:
    assert Printed(PASSAGE).missing(text) is None


@pytest.mark.parametrize(
    "text",
    ["318.6 million", "$318.6 million", "6 million", "23186", "$2,318.6 billion", "€2,318.6 million", "19.5%", "-18.9",
     "189", "2,318.7", "42.7 %%%  and 427", "427"],
)  # fmt: skip
def test_a_passage_does_not_print(text: str) -> None:
    assert Printed(PASSAGE).missing(text) is not None


def test_a_passage_decides_what_its_separators_mean() -> None:
    german = Printed("Der Umsatz stieg auf 1.452 Millionen Euro, das sind 3,5 % mehr.")
    assert german.missing("1452 Millionen Euro") is None
    assert german.missing("1,452 Millionen") is not None
    english = Printed("The river is 1.452 km wide and 3.5 km from here.")
    assert english.missing("1452") is not None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("(2318.6 - 1940.0) / 1940.0 * 100", "19.5%"),
        ("($2,318.6 − $1,940.0) ÷ $1,940.0", "19.52 %"),
        ("2318.6/1940 - 1", "19.5%"),
        ("12.5% - 9%", "3.5%"),
        ("[(433 + 685) / 2] × 3", "1677"),
        ("$1.2 billion - $300 million", "$0.9 billion"),
        ("2,318.6 - 1,940.0", "$378.6 million"),
        ("(4 + 5) / 2", "4.5"),
        ("1.452,4 - 1.146,2", "306,2"),
        ("(6.3 + 5.1) / 2", "5.7%"),
        ("(17 - 8) / 8", "112.5%"),
        ("-9.9 - 0", "-9.9"),
    ],
)
def test_a_derivation_gives_its_figure(text: str, answer: str) -> None:
    assert any(reading.gives(parse(answer)[0]) for reading in Derivation.readings(text))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("(2318.6 - 1940.0) / 1940.0 * 100", "19.6%"),
        ("(2318.6 - 1940.0) / 1940.0", "0.2%"),
        ("2318.6 - 1940.0", "-378.6"),
        ("2318.6 - 1940.0", "37.86"),
    ],
)
def test_a_derivation_does_not_give_another(text: str, answer: str) -> None:
    assert not any(reading.gives(parse(answer)[0]) for reading in Derivation.readings(text))


@pytest.mark.parametrize(
    "text",
    ["", "twelve", "1 / 0", "1 / (3 - 3)", "2 ** 9", "9 // 2", "__import__('os').system('true')", "1 if 2 else 3",
     "(" * 250, "n0 + 1", "1 + x", "1 2", "[1 for _ in 2]", "1" * 400, "1.2.3 + 1", "max(1, 2)", "1 + 1" + " + 1" * 60],
)  # fmt: skip
def test_what_is_no_arithmetic_is_refused(text: str) -> None:
    with pytest.raises(DerivationError):
        Derivation.read(text)


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=6), st.data())
def test_arithmetic_is_exact(numbers: list[int], data: st.DataObject) -> None:
    """Against Python's own, on fractions."""
    text, value = f"{numbers[0]:,}", Fraction(numbers[0])
    for number in numbers[1:]:
        sign = data.draw(st.sampled_from("+-*/"))
        text = f"({text}) {sign} {number:,}"
        value = {"+": value + number, "-": value - number, "*": value * number, "/": value / number}[sign]
    assert Derivation.read(text).value == value


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        ("$1.2 and 1.4 million", ["1200000 $", "1400000 $"]),
        ("$1.2, $1.3, and 1.4 million and 35 ships", ["1200000 $", "1300000 $", "1400000 $", "35"]),
        ("between €3 and 5 billion", ["3000000000 €", "5000000000 €"]),
        ("1,2 und 1,4 Millionen Euro", ["1200000 €", "1400000 €"]),
        ("from 3.5 to 4.2 %", ["3.5 %", "4.2 %"]),
        ("in 2018 and 1.4 million", ["2018", "1400000"]),
        ("5 and 3 million", ["5", "3000000"]),
        ("$1.2 and €1.4 million", ["1.2 $", "1400000 €"]),
        ("1.2 kg and 1.4 million", ["1.2 kg", "1400000"]),
        ("$12, and 5 %", ["12 $", "5 %"]),
        ("costs of $5. The rest was $3 million", ["5 $", "3000000 $"]),
    ],
)
def test_a_scale_that_is_written_once_belongs_to_all_listed_figures(text: str, figures: list[str]) -> None:
    assert [str(figure) for figure in parse(text)] == figures


def test_answers_share_a_scale_in_metrics_and_in_what_a_passage_prints() -> None:
    assert all_given("$1.2 and 1.4 million", ["$1.2 million", "$1.4 million"])
    assert not all_given("$1.2 and 1.4 billion", ["$1.2 million", "$1.4 million"])
    printed = Printed("Sales were $1.2 and 1.4 million in 2018 and 2019.")
    assert printed.missing("$1.2 million and $1.4 million") is None
    assert printed.missing("$1.2 billion") is not None
