"""Long answers, lists, reasoning and dialogues in Korean, German and Chinese: right pairs pass, wrong ones do not."""

from __future__ import annotations

from typing import Any

import pytest

from optimsyn.data.records import Pair, Passage
from optimsyn.programs.checker import Checker
from optimsyn.recipe.sections.synthesis import Checks

TEXTS = {
    "ko": "하라강 나루터에는 1874년에 등대가 세워졌다. 등대지기 윤도현은 고래기름 대신 석유 램프 12개를 썼다. 그는 등대에서 책과 지도를 모았고, "
    "1901년에는 폭풍으로 지붕이 무너져 벽돌로 다시 지었다.",
    "de": "Am Fährhafen der Hara wurde 1874 ein Leuchtturm errichtet. Der Wärter Jonas Wieland nutzte statt Walöl 12 "
    "Petroleumlampen. Er sammelte im Turm Bücher und Landkarten, und 1901 riss ein Sturm das Dach ab, das man aus Ziegeln "
    "neu baute.",
    "zh": "哈拉河渡口的灯塔建于1874年。守塔人林文舟用12盏石油灯代替鲸油。他在灯塔里收集书籍和地图，1901年暴风掀翻了屋顶，后来人们用砖重新修建。",
}
QUESTIONS = {
    "ko": "하라강 등대는 어떻게 변해 왔습니까?",
    "de": "Wie veränderte sich der Leuchtturm an der Hara?",
    "zh": "哈拉河渡口的灯塔有哪些变化？",
}
LONG = {
    "ko": "하라강의 등대는 1874년에 세워졌습니다. 윤도현은 고래기름을 쓰지 않고 석유 램프를 썼습니다.\n1901년에 폭풍이 지붕을 무너뜨리자 벽돌로 다시 지었습니다.",
    "de": "Den Leuchtturm errichtete man 1874. Jonas Wieland verwendete Petroleumlampen anstelle von Walöl.\nNach dem Sturm "
    "von 1901 baute man das Dach aus Ziegeln neu.",
    "zh": "灯塔在1874年建成。林文舟点的是石油灯，不再用鲸油。\n1901年屋顶被暴风掀翻，人们用砖把它修好了。",
}
INVENTED = {
    "ko": "광부들은 산에서 금을 캐고 철도를 놓았습니다. 도시는 커졌고 시장과 학교가 생겼습니다.",
    "de": "Bergleute gruben nach Gold und verlegten Schienen. Die Stadt wuchs, Märkte und Schulen entstanden.",
    "zh": "矿工们在山里挖金子，还铺设了铁路。城市越来越大，出现了学校和医院。",
}
ITEMS = {"ko": ("책", "지도"), "de": ("Bücher", "Landkarten"), "zh": ("书籍", "地图")}
STRANGE_ITEM = {"ko": "망원경", "de": "Fernrohre", "zh": "望远镜"}
COLLECTED = {
    "ko": "하라강 등대의 윤도현은 무엇을 모았습니까?",
    "de": "Was sammelte Jonas Wieland im Leuchtturm an der Hara?",
    "zh": "哈拉河灯塔的林文舟收集了什么？",
}
# Year of the new roof, the steps and the answer in another ending than in the steps.
STEPS = {
    "ko": (
        "하라강 등대의 지붕은 왜 다시 지었습니까?",
        "등대의 지붕은 1901년까지 그대로였다. 그해 폭풍으로 지붕이 무너졌으므로 폭풍 때문이다.",
        "폭풍으로",
    ),
    "de": (
        "Warum baute man das Dach des Leuchtturms an der Hara neu?",
        "Das Dach blieb bis 1901 auf dem Turm. Dann riss ein Sturm es ab, also lag es am Sturm.",
        "wegen eines Sturmes",
    ),
    "zh": (
        "哈拉河灯塔的屋顶为什么重新修建？",
        "屋顶在1901年以前一直完好。那一年暴风掀翻了屋顶，所以原因是暴风。",
        "因为暴风",
    ),
}
NEXT = {
    "ko": ("언제 세워졌습니까?", "1874년입니다."),
    "de": ("Wann entstand er?", "Im Jahr 1874."),
    "zh": ("建于哪一年？", "1874年。"),
}
LANGUAGES = tuple(TEXTS)
CHECKER = Checker(Checks())


def failed(language: str, form: str, question: str, answer: str, **details: Any) -> tuple[str, ...]:
    text = TEXTS[language]
    passage = Passage(id="p", document_id="d", title="", text=text, char_start=0, char_end=len(text))
    pair = Pair.model_validate(
        {"id": "x", "passage_id": "p", "question": question, "answer": answer, "form": form, "details": details}
    )
    return CHECKER.check(pair, passage).failed


def dialogue(language: str, answer: str, further: str) -> tuple[str, ...]:
    texts = (COLLECTED[language], answer, NEXT[language][0], further)
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return failed(language, "dialogue", texts[0], texts[-1], messages=messages)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_long_answer(language: str) -> None:
    question, answer = QUESTIONS[language], LONG[language]
    assert failed(language, "long_answer", question, answer) == ()
    assert "long_answer_grounded" in failed(language, "long_answer", question, INVENTED[language])
    assert failed(language, "long_answer", question, answer.replace("1901", "1907")) == ("long_answer_grounded",)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_list(language: str) -> None:
    def items(*each: str) -> tuple[str, ...]:
        answer = "\n".join(f"- {item}" for item in each)
        return failed(language, "list", COLLECTED[language], answer, items=list(each))

    assert items(*ITEMS[language]) == ()
    assert items(ITEMS[language][0], STRANGE_ITEM[language]) == ("items_grounded",)


@pytest.mark.parametrize("language", LANGUAGES)
def test_reasoning_may_come_to_its_answer_in_another_ending(language: str) -> None:
    question, steps, answer = STEPS[language]
    assert failed(language, "reasoning", question, answer, reasoning=steps) == ()
    assert "reasoning_grounded" in failed(language, "reasoning", question, answer, reasoning=INVENTED[language])
    another = failed(language, "reasoning", question, STRANGE_ITEM[language], reasoning=steps)
    assert "reasoning_well_formed" in another


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_dialogue(language: str) -> None:
    answer = ", ".join(ITEMS[language]) + "."
    assert dialogue(language, answer, NEXT[language][1]) == ()
    assert "dialogue_grounded" in dialogue(language, answer, INVENTED[language])
    assert dialogue(language, answer, NEXT[language][1].replace("1874", "1878")) == ("dialogue_grounded",)


# Two figures of a passage, and an answer that says which is the larger one in a word that the passage has not.
COMPARED = {
    "en": (
        "The lighthouse burnt 12 lamps in 1874. In 1901 it burnt 30 lamps.",
        "How did the lamps of 1874 and of 1901 compare?",
        "12 lamps are fewer than 30 lamps",
        "12 boats are fewer than 30 candles",
    ),
    "ko": (
        "하라강 등대는 1874년에 석유 램프 12개를 켰다. 1901년에는 석유 램프 30개를 켰다.",
        "하라강 등대의 1874년과 1901년 석유 램프 수는 어떻게 다른가요?",
        "12개가 30개보다 적었다",
        "1874년의 여객선이 1901년의 화물선보다 적었다",
    ),
    "de": (
        "Der Leuchtturm der Hara brannte 1874 mit 12 Lampen. Im Jahr 1901 waren es 30 Lampen.",
        "Wie unterscheiden sich die Lampen des Leuchtturms der Hara von 1874 und 1901?",
        "12 waren weniger als 30",
        "12 Boote sind weniger als 30 Kerzen",
    ),
    "zh": (
        "哈拉河灯塔在1874年点了12盏石油灯。1901年点了30盏石油灯。",
        "哈拉河灯塔1874年和1901年的石油灯数量有什么不同？",
        "12少于30",
        "1874年的客轮少于1901年的货轮",
    ),
    "ja": (
        "ハラ川の灯台では1874年に石油ランプ12個を使った。1901年には石油ランプ30個を使った。",
        "ハラ川の灯台の1874年と1901年の石油ランプの数はどう違いますか。",
        "12は30より少ない",
        "1874年の客船は1901年の貨物船より少ない",
    ),
    "th": (
        "ประภาคารฮาราใช้ตะเกียงน้ำมัน 12 ดวงใน ค.ศ. 1874 และใช้ตะเกียงน้ำมัน 30 ดวงใน ค.ศ. 1901",
        "ตะเกียงน้ำมันของประภาคารฮาราใน ค.ศ. 1874 และ ค.ศ. 1901 ต่างกันอย่างไร",
        "12 น้อยกว่า 30",
        "เรือโดยสาร 12 ลำ น้อยกว่าเครื่องบิน 30 ลำ",
    ),
    "ar": (
        "أضاءت منارة هارا 12 مصباحا عام 1874. وأضاءت المنارة 30 مصباحا عام 1901.",
        "كيف تختلف مصابيح منارة هارا بين عام 1874 وعام 1901؟",
        "12 أقل من 30",
        "12 قاربا أقل من 30 شمعة",
    ),
}


@pytest.mark.parametrize("language", COMPARED)
def test_who_compares_two_figures_may_say_which_is_larger(language: str) -> None:
    text, question, right, wrong = COMPARED[language]
    passage = Passage(id="p", document_id="d", title="", text=text, char_start=0, char_end=len(text))
    pairs = [Pair(id="x", passage_id="p", question=question, answer=answer) for answer in (right, wrong)]
    assert CHECKER.check(pairs[0], passage).reasons == {}
    assert CHECKER.check(pairs[1], passage).failed == ("grounded",)
