"""Words, languages and well-formedness in scripts and languages other than English, and English grammar."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimsyn.data.answer_metrics import exact_match, token_f1
from optimsyn.data.duplicates import NearDuplicates
from optimsyn.data.language import english
from optimsyn.data.language.detect import language_of, script_of
from optimsyn.data.language.dictionary import cut_word
from optimsyn.data.language.grounding import Source
from optimsyn.data.language.known import KNOWN, pattern
from optimsyn.data.language.segment import normalized, word_count, words_of
from optimsyn.data.language.whole import fragment, refuses, repeats
from optimsyn.data.passages import passage_spans
from optimsyn.data.records import Pair, Passage
from optimsyn.data.text import as_written, is_quoted
from optimsyn.programs.checker import Checker
from optimsyn.programs.language_checks import checks_not_run, language_notes
from optimsyn.recipe.sections.synthesis import Checks

TEXTS = {
    "ko": "하라강의 나루터에는 1874년에 처음 등대가 세워졌다. 등대지기 윤도현은 고래기름 대신 석유 램프 12개를 썼다. 이 등대는 안개가 짙은 밤에 배를 지켜 주었다.",
    "zh": "哈拉河渡口的灯塔建于1874年。守塔人林文舟用石油灯代替鲸油，一共点了12盏。大雾的夜里，灯塔指引船只避开暗礁。",
    "ja": "ハラ川の渡し場には1874年に初めて灯台が建てられた。灯台守の林文雄は鯨油の代わりに石油ランプを12個使った。濃霧の夜には船を暗礁から守った。",
    "th": "ประภาคารที่ท่าเรือฮาราสร้างขึ้นเมื่อ ค.ศ. 1874 ผู้ดูแลชื่อวิชัยใช้ตะเกียงน้ำมันก๊าด 12 ดวงแทนน้ำมันปลาวาฬ ในคืนที่หมอกหนาประภาคารช่วยเรือให้พ้นจากหินโสโครก",
    "de": "Am Fährhafen der Hara wurde 1874 ein Leuchtturm errichtet. Der Leuchtturmwärter Jonas Wieland nutzte statt Walöl zwölf Petroleumlampen. In Nebelnächten schützte das Licht die Schiffe vor den Klippen.",
    "ar": "بُنيت منارة ميناء هارا عام ١٨٧٤. استعمل حارس المنارة سليم القاضي اثني عشر مصباحًا نفطيًا بدلًا من زيت الحوت. وكانت المنارة تحمي السفن من الصخور في ليالي الضباب.",
    "hi": "हारा नदी के घाट पर 1874 में पहला प्रकाशस्तंभ बना। रखवाले ने व्हेल के तेल की जगह मिट्टी के तेल के दीपक जलाए। कोहरे की रातों में यह जहाज़ों को चट्टानों से बचाता था।",
    "ru": "В 1874 году у переправы на реке Хара построили маяк. Смотритель зажигал керосиновые лампы вместо китового жира. В туманные ночи маяк спасал корабли от скал.",
}
RIGHT = [
    ("ko", "하라강의 등대지기는 누구였습니까?", "윤도현"),
    ("ko", "하라강의 등대는 언제 세워졌습니까?", "1874년에 세워졌다."),
    ("ko", "하라강의 등대지기 윤도현은 무엇을 썼습니까?", "석유램프"),
    ("ko", "하라강의 등대는 어떤 밤에 배를 지켰습니까?", "안개 짙은 밤"),
    ("zh", "哈拉河渡口的灯塔建于哪一年？", "1874年"),
    ("zh", "哈拉河灯塔的守塔人是谁？", "林文舟"),
    ("zh", "林文舟用什么代替鲸油？", "石油灯"),
    ("ja", "ハラ川の灯台守は誰ですか。", "林文雄"),
    ("ja", "林文雄は鯨油の代わりに何を使いましたか。", "石油ランプを使いました。"),
    ("ja", "ハラ川の灯台はいつ建てられましたか。", "１８７４年"),
    ("th", "ประภาคารที่ท่าเรือฮาราสร้างขึ้นเมื่อใด", "ค.ศ. 1874"),
    ("th", "ผู้ดูแลประภาคารที่ท่าเรือฮาราคือใคร", "วิชัย"),
    ("de", "Wann wurde der Leuchtturm am Fährhafen der Hara errichtet?", "1874"),
    ("de", "Wovor schützte der Leuchtturm der Hara die Schiffe?", "Klippen"),
    ("de", "Wer war der Wärter des Leuchtturms an der Hara?", "Jonas Wieland"),
    ("ar", "متى بنيت منارة ميناء هارا؟", "عام 1874"),
    ("ar", "من كان حارس المنارة في ميناء هارا؟", "سليم القاضي"),
    ("ar", "مم كانت منارة ميناء هارا تحمي السفن؟", "الصخور"),
    ("hi", "हारा नदी के घाट पर प्रकाशस्तंभ कब बना?", "१८७४ में"),
    ("hi", "हारा नदी का प्रकाशस्तंभ जहाज़ों को किससे बचाता था?", "चट्टानों"),
    ("ru", "Что зажигал смотритель маяка на реке Хара?", "керосиновую лампу"),
]
WRONG = [
    ("ko", "하라강의 등대지기는 누구였습니까?", "윤도형", "grounded"),
    ("ko", "하라강의 등대는 언제 세워졌습니까?", "1878년", "grounded"),
    ("ko", "하라강의 등대지기는 누구였습니까?", "The keeper", "grounded"),
    ("ko", "하라강의 등대지기는 누구였습니까?", "모르겠습니다.", "whole_answer"),
    ("ko", "하라강의 등대지기는 누구였습니까?", "1874년", "answer_fits_question"),
    ("ko", "윗글에서 하라강의 등대지기는 누구입니까?", "윤도현", "mentions_document"),
    ("ko", "하라강의 등대지기 윤도현", "윤도현", "format"),
    ("ko", "그것은 언제 세워졌습니까?", "1874년", "stands_alone"),
    ("zh", "哈拉河灯塔的守塔人是谁？", "林文州", "grounded"),
    ("zh", "哈拉河灯塔的守塔人是谁？", "林文舟林文舟林文舟", "whole_answer"),
    ("zh", "哈拉河渡口的灯塔。", "1874年", "whole_question"),
    ("zh", "他用什么代替鲸油？", "石油灯", "stands_alone"),
    ("zh", "哈拉河灯塔的守塔人林文舟是谁？", "林文舟", "answered_by_itself"),
    ("ja", "ハラ川の灯台守は誰ですか。", "林文男", "grounded"),
    ("ja", "林文雄は鯨油の代わりに何を使いましたか。", "石油ラン", "whole_answer"),
    ("ja", "本文によると、ハラ川の灯台守は誰ですか。", "林文雄", "mentions_document"),
    ("ja", "ハラ川の灯台守について書きなさい。", "林文雄", "whole_question"),
    ("th", "ผู้ดูแลประภาคารที่ท่าเรือฮาราคือใคร", "สมศักดิ์", "grounded"),
    ("th", "ผู้ดูแลประภาคารที่ท่าเรือฮาราคือใคร", "ค.ศ. 1874", "answer_fits_question"),
    ("th", "ผู้ดูแลประภาคารที่ท่าเรือฮาราคือใคร", "ไม่ทราบ", "whole_answer"),
    ("de", "Wer war der Wärter des Leuchtturms an der Hara?", "Jonas Weiland", "grounded"),
    ("de", "Wer war der Wärter des Leuchtturms an der Hara?", "1874", "answer_fits_question"),
    ("de", "Was nutzte der Wärter an der Hara?", "zwölf Petrol", "whole_answer"),
    ("de", "Nenne den Wärter des Leuchtturms an der Hara.", "Jonas Wieland", "whole_question"),
    ("de", "Wann wurde er errichtet?", "1874", "stands_alone"),
    ("ar", "من كان حارس المنارة في ميناء هارا؟", "كريم المالكي", "grounded"),
    ("ar", "متى بنيت منارة ميناء هارا؟", "عام ١٨٧٦", "grounded"),
    ("ar", "بحسب النص، من كان حارس المنارة في ميناء هارا؟", "سليم القاضي", "mentions_document"),
    ("hi", "हारा नदी के घाट पर प्रकाशस्तंभ कब बना?", "1878 में", "grounded"),
    ("ru", "Что зажигал смотритель маяка на реке Хара?", "восковые свечи", "grounded"),
]


def _failed(language: str, question: str, answer: str, text: str | None = None) -> dict[str, str]:
    text = text or TEXTS[language]
    passage = Passage(id="p", document_id="d", text=text, char_start=0, char_end=len(text))
    return Checker(Checks()).check(Pair(id="x", passage_id="p", question=question, answer=answer), passage).reasons


@pytest.mark.parametrize(("language", "question", "answer"), RIGHT)
def test_right_pairs_pass_in_their_language(language: str, question: str, answer: str) -> None:
    assert _failed(language, question, answer) == {}


@pytest.mark.parametrize(("language", "question", "answer", "check"), WRONG)
def test_wrong_pairs_are_refused_in_their_language(language: str, question: str, answer: str, check: str) -> None:
    assert check in _failed(language, question, answer)


@pytest.mark.parametrize("language", TEXTS)
def test_the_language_of_a_text(language: str) -> None:
    assert language_of(TEXTS[language]) == language


def test_the_script_of_a_text() -> None:
    assert script_of("MRT 검사는 자기공명영상(magnetic resonance imaging)이다") == "Hangul"
    assert script_of("12 + 7 = 19") == ""
    assert language_of("12 + 7 = 19") == ""


def test_words_of_many_scripts() -> None:
    assert words_of("비타민C의") == ["비타민", "c", "의"]
    assert words_of("维生素Ｃ１２") == ["维", "生", "素", "c12"]
    # A vowel sign belongs to its letter, in Devanagari and in Thai.
    assert words_of("विटामिन सी") == ["विटामिन", "सी"]
    assert words_of("น้ำ") == words_of("น\u0e49\u0e33")
    assert normalized("كِتَـــابٌ") == normalized("كتاب")
    assert normalized("٣٫٥") == "3٫5"
    assert normalized("३१") == "31"


def test_lengths_say_as_much_in_scripts_without_spaces() -> None:
    english = "Scurvy is a disease caused by a lack of vitamin C and its first sign is bleeding gums"
    chinese = "坏血病是由缺乏维生素C引起的疾病，最早的症状是牙龈出血。"
    assert 0.6 * word_count(english) < word_count(chinese) < 1.4 * word_count(english)
    assert word_count("one two three") == 3


def test_texts_without_spaces_are_cut_at_sentences() -> None:
    for sentence in ("水车每天转动两次，河水流过石桥。", "水車は毎日二回まわる。"):
        text = sentence * 120
        spans = passage_spans(text, 100)
        assert len(spans) > 3
        assert all(text[start:end].endswith("。") for start, end in spans)
        assert all(word_count(text[start:end]) <= 100 for start, end in spans)


def test_quotes_in_scripts_without_spaces() -> None:
    assert is_quoted("守塔人林文舟用石油灯代替鲸油", TEXTS["zh"])
    assert not is_quoted("守塔人用石油灯代替船只的暗礁", TEXTS["zh"])
    assert as_written("灯塔 建于 1874 年", TEXTS["zh"]) == "灯塔建于1874年"


def test_answers_are_compared_by_letters_where_their_evaluations_do() -> None:
    assert exact_match("비타민C", ["비타민 C"])
    assert exact_match("東京 タワー", ["東京タワー"])
    assert not exact_match("비타민D", ["비타민 C"])
    # Five of seven letters, all of the gold answer's: precision 5/7, recall 1.
    assert token_f1("维生素C缺乏症", ["维生素C缺"]) == pytest.approx(2 * 5 / 12)
    assert token_f1("red barn", ["red house"]) == pytest.approx(0.5)


def test_questions_on_other_letters_are_no_duplicates() -> None:
    index = NearDuplicates(["人体严重缺乏维生素A会引起什么样的疾病？"])
    assert index.match("人体严重缺乏维生素C会引起什么样的疾病？") is None
    assert index.match("人体严重缺乏维生素A会引起什么样的疾病呢？") is not None


def test_endings_particles_and_compounds() -> None:
    german = Source("Der Mangel an Vitaminen schwächt das Zahnfleisch der Seeleute, Vorräte werden aufgefüllt.")
    assert german.strange("Vitaminmangel des Seemanns Zahnfleisches auffüllen") == ["seemanns"]
    korean = Source("항구의 노동자들은 임금 인상을 요구하며 파업을 벌였다.")
    assert korean.strange("임금인상을 요구했다") == []
    assert korean.strange("복지를 요구했다") == ["복지를"]
    arabic = Source("طالب العمال في الميناء برفع الأجور.")
    assert arabic.strange("العمّال والأجور بالميناء") == []
    assert arabic.strange("المزارعون") == ["المزارعون"]


def test_a_negation_or_an_opposite_that_the_passage_does_not_say() -> None:
    text = "Nach der Reform stieg der Umsatz der Werft in Hara deutlich. Die Löhne der Arbeiter blieben gleich."
    assert "grounded" in _failed(
        "de", "Was geschah mit dem Umsatz der Werft in Hara?", "Der Umsatz der Werft sank.", text
    )
    assert "grounded" in _failed("de", "Wie blieben die Löhne der Arbeiter der Werft?", "nicht gleich", text)
    assert _failed("de", "Was geschah mit dem Umsatz der Werft in Hara?", "Der Umsatz der Werft stieg.", text) == {}


@pytest.mark.parametrize(
    ("question", "broken"),
    [
        ("What were out of 2,140 members 31.5%?", True),
        ("Who is than the second ferry?", True),
        ("When the ferry?", True),
        ("What who built the ferry?", True),
        ("Why did of the harbour close?", True),
        ("What was the turnout 56.2%?", True),
        ("What share of the members were women?", False),
        ("What may have caused the fall in the catch of herring?", False),
        ("Which of the two ferries is older?", False),
        ("What is on the coin of Hara?", False),
        ("For which debts is the owner of 12% liable?", False),
        ("Why was the ferry late by 20%?", False),
    ],
)
def test_english_grammar(question: str, broken: bool) -> None:
    assert (english.ungrammatical(question) is not None) == broken


@pytest.mark.parametrize(
    ("question", "content", "alone"),
    [
        ("What should be reduced?", ["reduced"], False),
        ("When was it built?", ["built"], False),
        ("Why did they happen?", ["happen"], False),
        ("What is tephra?", ["tephra"], True),
        ("What causes gout?", ["causes", "gout"], True),
        ("When was the Forth Bridge opened?", ["forth", "bridge", "opened"], True),
    ],
)
def test_english_questions_that_stand_alone(question: str, content: list[str], alone: bool) -> None:
    assert (english.not_alone(question, content) is None) == alone


def test_open_book_questions_need_not_stand_alone() -> None:
    text = "Salt should be reduced slowly and with a doctor's advice."
    passage = Passage(id="p", document_id="d", text=text, char_start=0, char_end=len(text))
    pair = Pair(id="x", passage_id="p", question="What should be reduced?", answer="Salt")
    assert Checker(Checks()).check(pair, passage).failed == ("stands_alone",)
    assert Checker(Checks()).check(pair.model_copy(update={"context": text}), passage).valid


@pytest.mark.parametrize(
    ("answer", "source", "language", "piece"),
    [
        ("the oxid", "the oxidation of iron", "en", True),
        ("oxidation (of ir", "oxidation (of iron)", "en", True),
        (", and of iron", "copper, and of iron", "en", True),
        ("the oxide", "the oxides of iron", "en", False),
        ("in 2013.", "it opened in 2013. the town grew", "en", False),
        ("24.", "it rose to 24.5 per cent", "en", True),
        ("a) first, b) second", "first and second", "en", False),
        ("„Fährhafen“", "der fährhafen", "de", False),
        ("das Licht", "das lichtlein am fährhafen", "de", True),
    ],
)
def test_pieces_of_sentences(answer: str, source: str, language: str, piece: bool) -> None:
    assert (fragment(answer, source, language) is not None) == piece


def test_replies_that_know_nothing_and_answers_said_twice() -> None:
    assert refuses("The passage does not say.", "en")
    assert refuses("Unknown", "de")
    assert not refuses("unknown names", "en")
    assert not refuses("a disease of unknown origin", "en")
    assert repeats("12% 12% 12% 12%")
    assert repeats("It rose by a fifth. It rose by a fifth.")
    assert not repeats("1,000,000 บาท")
    assert not repeats("工商银行、农业银行、建设银行、中国银行")


def test_a_check_that_does_not_know_a_language_says_so() -> None:
    assert checks_not_run("en", ("stands_alone", "whole_question")) == {}
    assert set(checks_not_run("ko", ("stands_alone", "whole_question", "grounded"))) == {"whole_question"}
    assert set(checks_not_run("ru", ("stands_alone", "whole_question"))) == {"stands_alone", "whole_question"}
    passages = [
        Passage(id=f"{name}{place}", document_id="d", text=TEXTS[name], char_start=0, char_end=len(TEXTS[name]))
        for name, count in (("ru", 2), ("ko", 1))
        for place in range(count)
    ]
    russian, korean = language_notes(passages)
    assert russian.startswith("2 of 3 passages are in Russian: `answer_fits_question` does not run there")
    assert korean == (
        "1 of 3 passages is in Korean: `whole_question` does not look at grammar there, it knows that of English only"
    )
    assert (
        language_notes(passages[:2], ("answer_fits_question", "mentions_document", "stands_alone", "whole_question"))
        == []
    )


def test_every_list_of_words_is_a_pattern() -> None:
    for language, known in KNOWN.items():
        for field in vars(known):
            found = pattern(language, field)
            assert found is None or not found.match("")


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab 12%.,가나를中国日本กาไいカアللاпр?(“\u0301", max_size=120))
def test_any_text_is_judged_without_an_error(text: str) -> None:
    for language in ("ko", "zh", "th", "ar", "de"):
        _failed(language, f"{text}?", text or "x")


@pytest.mark.parametrize("letters", ["가", "中", "ก", "a", "ا", "कि", "中国 ", "1 ", "(", "(a", "가 나 "])
def test_long_texts_of_few_letters_take_no_long_time(letters: str) -> None:
    # Thirty thousand letters: work that grows with the square would not end within the tests' patience.
    text = letters * (30_000 // len(letters))
    reasons = _failed("zh", f"{text}?", text, text[:4000])
    assert reasons


@pytest.mark.parametrize(
    ("language", "question", "whole"),
    [
        ("ko", "What does 등대지기 윤도현의 램프 mean?", False),
        ("ko", "Why was 하라강의 등대가 세워졌을까?", False),
        ("ko", "하라강의 등대지기 윤도현은 램프를 몇 개 썼는가?", True),
        ("de", "Wie viele Petroleumlampen nutzte der Leuchtturmwärter, what does das bedeuten?", False),
        ("de", "Was nutzte der Leuchtturmwärter Jonas Wieland statt Walöl?", True),
        ("zh", "WHO 的守塔人林文舟用什么灯代替鲸油？", True),
    ],
)
def test_a_question_that_mixes_english_with_another_language_is_not_whole(
    language: str, question: str, whole: bool
) -> None:
    assert ("whole_question" not in _failed(language, question, "12")) == whole


CUT = [
    ("zh", "大雾的夜里，灯塔指引船只避开暗", "大雾的夜里"),
    ("ja", "鯨油の代わりに石油ラン", "石油ランプ"),
    ("th", "ตะเกียงน้ำมันก๊าด 12 ดวงแทนน้ำมันปลาว", "ตะเกียงน้ำมันก๊าด"),
]


@pytest.mark.parametrize(("language", "cut", "whole"), CUT)
def test_an_answer_that_ends_inside_a_word_of_the_dictionary_is_a_piece(language: str, cut: str, whole: str) -> None:
    text = normalized(TEXTS[language])
    assert fragment(cut, text, language) is not None
    assert fragment(whole, text, language) is None


def test_words_are_counted_by_letters_also_behind_letters_outside_the_basic_plane() -> None:
    text = "😀壊血病は😀ビタミンの欠乏"
    start = text.index("ビタミン")
    assert cut_word(start, start + 4, text, "ja") is None
    assert cut_word(start, start + 3, text, "ja") == cut_word(start + 1, start + 4, text, "ja") == "ビタミン"


@pytest.mark.parametrize(
    ("language", "word", "inside"), [("lo", "ສະບາຍດີ", 3), ("km", "ភាសាខ្មែរ", 2), ("my", "မြန်မာ", 4)]
)
def test_further_scripts_have_dictionaries(language: str, word: str, inside: int) -> None:
    assert cut_word(0, inside, word, language) == word
    assert cut_word(0, len(word), word, language) is None


def test_what_the_dictionary_joins_with_an_empty_word_or_a_count_is_whole() -> None:
    assert cut_word(0, 4, "牛奶和茶会妨碍吸收。", "zh") is None  # 茶会 is a tea party, 会 also "may"
    assert cut_word(2, 5, "访问86户外来家庭。", "zh") is None  # 户外 is "outdoors", 户 counts families


def test_the_version_of_the_dictionary_is_part_of_the_identity_of_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Checker(Checks()).fingerprint
    monkeypatch.setattr("optimsyn.programs.check_fingerprint.version", lambda name: "0.0")
    assert Checker(Checks()).fingerprint != before


@pytest.mark.parametrize(
    ("text", "question", "answer"),
    [
        (
            "하라강 등대의 수입은 2019년에 1조 2,384억 원으로 늘었다.",
            "하라강 등대의 2019년 수입은 얼마였습니까?",
            "1조 2384억 원",
        ),
        (
            "Der Umsatz der Hara-Werft stieg 2019 auf 1.452,4 Mio. €.",
            "Wie hoch war der Umsatz der Hara-Werft 2019?",
            "1452,4 Mio. €",
        ),
        ("哈拉公司2019年的收入为1,452万元。", "哈拉公司2019年的收入是多少？", "1452万元"),
        ("ハラ社の2019年の売上は1452万円だった。", "ハラ社の2019年の売上はいくらですか。", "1,452万円"),
    ],
)
def test_marks_between_thousands_make_no_other_figure(text: str, question: str, answer: str) -> None:
    passage = Passage(id="p", document_id="d", title="", text=text, char_start=0, char_end=len(text))
    pair = Pair(id="x", passage_id="p", question=question, answer=answer)
    assert Checker(Checks()).check(pair, passage).reasons == {}
    wrong = pair.model_copy(update={"answer": answer.replace("4", "7", 1)})
    assert Checker(Checks()).check(wrong, passage).failed == ("grounded",)
