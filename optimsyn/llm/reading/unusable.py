"""Classifies replies without a value: cut, refused, a tool call, empty, or of a wrong form."""

from __future__ import annotations

import re

from optimsyn.base.errors import Outcome, ReplyError
from optimsyn.llm.reading.plain_text import beginning
from optimsyn.llm.replies import Reply

# Finish reasons for replies that reached their length limit, and for withheld ones.
_CUT = frozenset({"length", "max_tokens", "max_output_tokens", "model_length", "max_length"})
_HELD_BACK = ("content_filter", "content_filtered", "refusal", "safety", "prohibited_content", "blocklist")
# A refusal has one of these phrases within its first words, and is short.
_LONGEST_REFUSAL = 2000
_WORDS = (
    r"i (?:can(?:['’]?t|not| not)|won['’]t|will not|must decline|have to decline|am (?:sorry|unable|not able|afraid))",
    r"i['’]m (?:sorry|unable|not able|afraid)|as an ai|apologies|sorry|unfortunately,? i",
    r"je (?:ne peux|ne suis pas en mesure|suis désolée?|regrette)|désolée?|en tant qu['’]ia",
    r"lo siento|no puedo|lamento|no me es posible|como (?:una )?(?:ia|inteligencia artificial)",
    r"(?:es )?tut mir leid|ich kann (?:\w+ ){0,4}nicht|ich kann leider|leider kann ich|entschuldigung",
    r"mi dispiace|non posso|desculpe|sinto muito|não posso|het spijt me|ik kan (?:\w+ ){0,4}niet",
    r"przepraszam|nie mogę|omlouvám se|nemohu|jag kan (?:\w+ ){0,3}inte|beklager|jeg kan (?:\w+ ){0,3}ikke",
    r"en voi|sajnálom|îmi pare rău|üzgünüm|maaf|saya tidak (?:bisa|dapat)|xin lỗi|tôi không thể|pasensya",
    r"извините|простите|я не могу|к сожалению|на жаль|вибачте|λυπάμαι|δεν μπορώ",
)
_SIGNS = (
    r"抱歉|对不起|對不起|我(?:无法|不能|無法)|申し訳|すみません|できません|お答えできません",
    r"죄송|할 수 없|도와드릴 수 없|آسف|عذر|لا (?:أستطيع|يمكنني)|متاسف|מצטער|איני יכול|क्षमा|माफ़|मैं नहीं|ขออภัย|ไม่สามารถ",
)
_REFUSAL = re.compile(rf"\b(?:{'|'.join(_WORDS)})\b|{'|'.join(_SIGNS)}", re.IGNORECASE)
_FIRST_WORDS = 80


def was_cut(reply: Reply) -> bool:
    """Whether the service says that the reply reached its length limit."""
    return reply.finish_reason.lower() in _CUT


def was_refused(reply: Reply) -> bool:
    """Whether the service says that it refused or withheld the reply."""
    return bool(reply.refusal.strip()) or reply.finish_reason.lower().endswith(_HELD_BACK)


def sounds_refused(text: str) -> bool:
    """Whether a text begins like a refusal, in some thirty languages."""
    body = text.strip().lstrip("{[\"'*_# ")
    return len(body) <= _LONGEST_REFUSAL and _REFUSAL.search(body[:_FIRST_WORDS]) is not None


def unusable(
    reply: Reply, answer: str, *, what: str, thinking: bool, overlong: int | None, problems: list[ReplyError]
) -> ReplyError:
    """The error for a reply without a value.

    Args:
        reply: The reply.
        answer: Its text without its thinking.
        what: The expected value, such as `question and answer`.
        thinking: Whether it ends inside its thinking.
        overlong: Where it was truncated because it was too long for its cap on tokens; None: it was not.
        problems: The errors of parsing it.
    """
    if was_refused(reply):
        reason = reply.refusal.strip() or answer or f"it ended with {reply.finish_reason}"
        return ReplyError(f"the service refused to write a {what}: {beginning(reason, 200)}", Outcome.REFUSAL)
    if reply.tool_call and not answer:
        return ReplyError(
            f"the reply is a tool call in place of a {what}: {beginning(reply.tool_call)}", Outcome.TOOL_CALL
        )
    if overlong is not None:
        return ReplyError(
            f"the reply runs on over {overlong:,} characters, more than its tokens explain, without a {what}; it "
            f"begins {beginning(reply.text)}"
        )
    broken = next((problem for problem in problems if problem.outcome is Outcome.CUT), None)
    if was_cut(reply) or thinking or (broken is not None and not answer.rstrip(" \n`").endswith("}")):
        return ReplyError(_cut(reply, answer, what, thinking, broken), Outcome.CUT)
    if broken is not None:
        return ReplyError(f"a quote is missing before the closing bracket of the {what}, which ends {_ending(answer)}")
    if not answer:
        if reply.reasoning.strip():
            return ReplyError(
                f"the reply is empty, but its reasoning is not (it ends {_ending(reply.reasoning)}): no {what} is in "
                "its content. Turn the model's thinking off, or fix the server's parser of reasoning",
                Outcome.EMPTY,
            )
        return ReplyError(f"the reply is empty: no {what} in it", Outcome.EMPTY)
    if sounds_refused(answer):
        return ReplyError(f"the reply refuses to write a {what}: {beginning(answer, 200)}", Outcome.REFUSAL)
    refusals = [problem for problem in problems if problem.outcome is Outcome.REFUSAL]
    return (refusals or problems)[0]


def _cut(reply: Reply, answer: str, what: str, thinking: bool, broken: ReplyError | None) -> str:
    used = f" of {reply.output_tokens} tokens" if reply.output_tokens else ""
    if not answer and (reply.reasoning.strip() or thinking or not reply.text.strip()):
        return f"a reply{used} was cut before it said anything: all of it went to reasoning"
    if broken is not None:
        return f"{broken}; a reply{used} was cut before its {what} was whole, it ends {_ending(answer)}"
    return f"a reply{used} was cut before its {what} was whole; it ends {_ending(answer or reply.text)}"


def _ending(text: str, limit: int = 60) -> str:
    return "…" + beginning(text.rstrip()[-limit:], limit)
