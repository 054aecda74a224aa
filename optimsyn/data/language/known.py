"""The languages whose words the checks know: what asks for a person, what says that it does not know, and so on.

A list holds plain words; `|` separates them. What a language does not know is left empty, and the checks that need it do
not run there (`optimsyn.programs.language_checks` says so). English keeps its own, older lists in `optimsyn.programs.checks`
and `english`; the ones here serve what is common to all languages.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import regex

from optimsyn.data.language.segment import normalized

_APART = ("ko", "zh", "ja", "th")
"""Languages whose words need no white space around them, or take particles."""


@dataclass(frozen=True)
class Known:
    """The words of one language, each a list of alternatives.

    Attributes:
        empty: Words without content of their own.
        asks: Words or endings of a question.
        who: What asks for a person.
        when: What asks for a time.
        many: What asks for a quantity.
        why: What asks for a reason.
        where: What asks for a place.
        time: Words of a time.
        number: Words of a quantity.
        verdict: Answers to a yes-or-no question.
        either: The "or" between two offered answers.
        negation: Words that turn a statement round.
        opposites: Pairs of words with opposite meanings, `up/down`.
        larger: Words that say which of two figures is the larger one, or the smaller.
        source: Words for the text itself, as the writer of a question might call it.
        pointing: Words that stand for what was said before.
        unknown: Replies that refuse or say that the answer is not there.
        orders: Words with which an order begins or ends.
        headless: Words with which a question without a subject begins.
    """

    empty: str = ""
    asks: str = ""
    who: str = ""
    when: str = ""
    many: str = ""
    why: str = ""
    where: str = ""
    time: str = ""
    number: str = ""
    verdict: str = ""
    either: str = ""
    negation: str = ""
    opposites: str = ""
    larger: str = ""
    source: str = ""
    pointing: str = ""
    unknown: str = ""
    orders: str = ""
    headless: str = ""


KNOWN: dict[str, Known] = {
    "en": Known(
        unknown="i do not know|i don't know|i'm not sure|i am not sure|unknown|not known|not mentioned|"
        "is not stated|not specified|the passage does not|the text does not|does not say|no information|"
        "cannot be determined|cannot answer|can't answer|n/a|not available|unanswerable|no answer|i'm sorry|as an ai",
        negation="not|no|never|none|neither|nor|without|cannot|n't",
        opposites="increase/decrease|increased/decreased|increases/decreases|rise/fall|rose/fell|rises/falls|"
        "higher/lower|more/less|before/after|above/below|raised/lowered|raises/lowers",
        larger="higher|lower|more|less|fewer|greater|smaller|larger|bigger|longer|shorter|earlier|later",
    ),
    "de": Known(
        empty="der|die|das|den|dem|des|ein|eine|einen|einem|einer|eines|und|oder|aber|als|wie|in|im|an|am|auf|aus|bei|"
        "beim|mit|nach|von|vom|zu|zum|zur|für|um|durch|über|unter|vor|gegen|ohne|zwischen|bis|seit|während|ist|sind|war|"
        "waren|wird|werden|wurde|wurden|worden|hat|haben|hatte|hatten|sein|sei|kann|können|konnte|muss|müssen|musste|soll|"
        "sollen|sollte|darf|dürfen|mag|will|wollen|es|er|sie|ihn|ihm|ihr|ihre|ihren|ihrer|ihrem|seine|seinen|seiner|seinem|"
        "seines|man|sich|nicht|kein|keine|auch|nur|noch|schon|sehr|so|dass|weil|wenn|damit|denn|da|dort|hier|dies|diese|"
        "dieser|dieses|diesem|diesen|welche|welcher|welches|welchem|welchen|wer|wen|wem|wessen|was|wann|wo|woher|wohin|"
        "warum|weshalb|wieso|wie|wofür|womit|wodurch|woran|worauf|woraus|worin|wovon|wozu|wogegen|worüber|viel|viele|"
        "vielen|lange|hoch|groß|weit|oft|alt|etwa|rund|ungefähr|genau|laut|wegen|oberhalb|unterhalb|prozent|ab|jeder|jede|jedes|jedem|jahr|jahre|jahren|heißt|heißen|genannt|"
        "nennt|art|wodurch|daran|darauf|davon|dabei|dazu|dafür|daher|deren|dessen|denen|sowie|je|pro|ihres|einander|"
        "alle|allem|allen|aller|alles|also|andere|anderem|anderen|anderer|anderes|bin|dann|derer|einige|einigen|einiger|einmal|etwas|"
        "gewesen|habe|ins|jene|jenem|jenen|jener|jenes|manche|manchen|mancher|nun|ob|selbst|ihnen|solche|solchem|solchen|solcher|"
        "sondern|sonst|unser|werde|wieder|wir|würde|würden|jedoch|sowohl|zwar|indem|hinter|jeden|jetzt|bereits|erst",
        asks="wer|wen|wem|wessen|was|wann|wo|woher|wohin|warum|weshalb|wieso|wie|wofür|womit|wodurch|woran|worauf|woraus|"
        "worin|wovon|wozu|wogegen|worüber|welche|welcher|welches|welchem|welchen|wonach|worum|wovor|inwiefern|inwieweit",
        who="wer|wen|wem|wessen",
        when="wann|in welchem jahr|in welchem monat|an welchem tag|im welchem jahrhundert|seit wann|bis wann|wie lange",
        many="wie viel|wie viele|wie vielen|wieviel|wieviele|wie hoch|wie groß|wie lange|wie oft|wie alt|wie weit|wie schwer|"
        "wie lang|welcher anteil|welchen anteil|wie stark|um wie viel",
        why="warum|weshalb|wieso",
        where="wo|wohin|woher|in welcher stadt|in welchem land|an welchem ort",
        time="januar|februar|märz|april|mai|juni|juli|august|september|oktober|november|dezember|montag|dienstag|mittwoch|"
        "donnerstag|freitag|samstag|sonntag|frühling|frühjahr|sommer|herbst|winter|tag|tage|tagen|woche|wochen|monat|monate|"
        "monaten|monats|jahr|jahre|jahren|jahres|jahrhundert|jahrhunderts|stunde|stunden|minute|minuten|sekunden|uhr|morgen|morgens|"
        "abend|abends|nacht|nachts|mittag|vor|nach|während|seit|bis|sobald|wenn|als|bei|beim|ende|anfang|beginn|zeit|krieg|"
        "heute|gestern|sofort|spätestens|frühestens|mitte|quartal|quartals",
        number="null|kein|keine|keinen|ein|eine|einen|einem|einer|eins|einmal|zwei|zweimal|drei|dreimal|vier|fünf|sechs|sieben|"
        "acht|neun|zehn|elf|zwölf|dutzend|hundert|hunderte|tausend|tausende|million|millionen|milliarde|milliarden|hälfte|"
        "halb|halbe|drittel|viertel|fünftel|zehntel|doppelt|doppelte|dreifach|dreifache|mehrere|viele|wenige|alle|prozent|"
        "zwanzig|dreißig|vierzig|fünfzig|sechzig|siebzig|achtzig|neunzig|beide|beiden|selten|täglich|wöchentlich|monatlich|"
        "jährlich|lebenslang|unbegrenzt|unbefristet|dreizehn|vierzehn|fünfzehn|sechzehn|siebzehn|achtzehn|neunzehn",
        verdict="ja|nein|wahr|falsch|richtig|vielleicht",
        either="oder",
        negation="nicht|kein|keine|keinen|keinem|keiner|keines|nie|niemals|ohne|weder|nichts|niemand",
        opposites="steigt/sinkt|stieg/sank|steigen/sinken|gestiegen/gesunken|erhöht/gesenkt|erhöhte/senkte|erhöhen/senken|"
        "mehr/weniger|höher/niedriger|größer/kleiner|zunahme/abnahme",
        larger="höher|höhere|höheren|niedriger|niedrigere|niedrigeren|mehr|weniger|größer|größere|größeren|kleiner|kleinere|"
        "kleineren|länger|längere|längeren|kürzer|früher|später|älter|jünger|stärker|schwächer|teurer|billiger",
        source="text|passage|abschnitt|artikel|dokument|auszug|absatz|textabschnitt|verfasser|autor|autorin|beitrag|"
        "textstelle|textpassage|vorlage|quelle|textauszug|schriftstück",
        pointing="er|es|sie|ihn|ihm|dies|dieser|diese|dieses|diesem|diesen|jener|jene|jenes|dort|dabei|daran|damit|danach|"
        "davon|dafür|dadurch|darin|daraufhin|seither|seitdem|ihnen|beide|beiden|dazu|dagegen|darüber|darauf|daraus",
        unknown="ich weiß nicht|weiß ich nicht|weiß es nicht|keine ahnung|nicht bekannt|unbekannt|keine angabe|keine angaben|"
        "keine information|keine informationen|nicht angegeben|nicht erwähnt|nicht genannt|geht nicht hervor|nicht hervor|"
        "steht nicht im|nicht im text|nicht beantworten|tut mir leid|keine antwort|nicht zu beantworten|nicht enthalten|"
        "der text sagt|dazu sagt|sagt dazu nichts|steht dazu nichts|k. a.|leider|nicht sicher|lässt sich nicht sagen|"
        "macht der text|liegen mir|nicht ersichtlich|nicht entnehmen|als ki|als sprachmodell",
        orders="nenne|nennen sie|beschreibe|beschreiben sie|erkläre|erklären sie|erläutere|erläutern sie|gib|geben sie|"
        "liste|zähle|schildere|fasse|fassen sie|zählen sie|schreibe|schreiben sie|übersetze|übersetzen sie|vergleiche|"
        "vergleichen sie|berechne|berechnen sie|bestimme|bestimmen sie|stelle|stellen sie|schildern sie|listen sie",
    ),
    "ko": Known(
        empty="무엇|무슨|어떤|어느|누구|누가|언제|어디|얼마|얼마나|몇|왜|어떻게|어째서|것|수|등|및|때|때문|또는|그리고|그|이|저|위해|위하여|대해|대한|"
        "대하여|의해|의하여|따라|따른|통해|통하여|관한|관해|있다|있는|있습니까|있나|있나요|없다|하다|하는|한|할|합니까|하나|하나요|했|되다|되는|된|될|됩니까|"
        "되나|되나요|이다|입니까|인가|인가요|이란|라고|라는|까닭|이유|경우|가장|주로|보통|약|더|또|중|가운데|년|월|일|이름|정도|부르는가|하는가|되는가|"
        "무엇인가|무엇입니까|누구인가|누구입니까|언제인가|언제입니까|어디인가|어디입니까|얼마인가|얼마입니까|했습니까|하였습니까|했는가|되었습니까|되었는가|부릅니까",
        asks="무엇|무슨|어떤|어느|누구|누가|누굴|언제|어디|얼마|몇|왜|어떻게|어째서|습니까|입니까|합니까|까요|나요|는가|은가|인가|던가|을까|"
        "할까|뭐|뭘|무얼",
        who="누구|누가|누굴",
        when="언제|몇 년도|몇 년에|몇 월|며칠",
        many="몇|얼마|얼마나",
        why="왜|어째서|까닭은|이유는|이유가",
        where="어디|어느 도시|어느 나라|어느 지역",
        time="년|월|일|시|분|주|세기|때|전|후|동안|봄|여름|가을|겨울|아침|저녁|밤|낮|오전|오후|이후|이전|직후|직전|요일|초|말|중순|경우|무렵|"
        "시기|기간|당시|날|달|해|시대|뒤|까지|부터|면|수록|즉시|어제|오늘|내일|작년|내년|올해|분기",
        number="영|일|이|삼|사|오|육|칠|팔|구|십|백|천|만|억|조|하나|한|둘|두|셋|세|넷|네|다섯|여섯|일곱|여덟|아홉|열|스무|서른|마흔|쉰|절반|반|배|"
        "모두|전부|여러|몇|많|적|수십|수백|수천|매일|매주|매달|매년|할",
        verdict="예|네|아니요|아니오|참|거짓|그렇다|아니다|그렇습니다|아닙니다",
        either="또는|아니면|혹은|인가요|입니까",
        negation="않|못|없|아니|안",
        opposites="증가/감소|상승/하락|올랐/내렸|올라/내려|높/낮|많/적|이상/이하|초과/미만|이전/이후|늘/줄|인상/인하",
        larger="높|낮|많|적|크|큰|큽|컸|작|길|긴|짧|빠르|빨랐|빠른|늦|이르|일렀",
        source="지문|본문|위 글|윗글|이 글|글쓴이|글에서|글에 따르면|문단|본 글|제시문|위 내용|저자|필자|앞 글|기사에|문서에|자료에|이 문서|위 문서|이 자료|위 자료|이 기사|위 기사|발췌문|주어진 글",
        pointing="그것|이것|저것|그는|그가|그를|그의|그녀|그들|이들|여기|거기|그곳|이곳|해당|이를|이는|그 |이 |앞서|위의|그때|이때|그날|그런|이런|이러한|그러한|그렇게|이렇게|이로|같은 ",
        unknown="모르|알 수 없|답할 수 없|답변할 수 없|답변드릴 수 없|대답할 수 없|나와 있지 않|나오지 않|언급되지 않|언급이 없|내용이 없|정보가 없|제시되지 않|"
        "확인할 수 없|죄송|해당 없음|없음|미상|불명|알려져 있지 않|알려지지 않|찾을 수 없|적혀 있지 않|판단할 수 없|설명이 없|설명하지 않|다루지 않|정답 없|답 없|답이 없",
        orders="하시오|쓰시오|하라|설명하라|서술하시오|고르시오|적으시오|말하시오|해 주세요|하세요|해 보세요|나열하시오|구하시오|요약하시오|써라|적어라|해라|보시오|주십시오|바랍니다|하십시오|보라|쓰세요|말해 보라|답하라|들라|드시오",
    ),
    "zh": Known(
        empty="什么|什麼|哪种|哪種|哪些|哪个|哪個|哪一|哪|谁|誰|何时|何時|何|多少|多久|多长|多長|多大|多高|几|幾|为什么|為什麼|为何|為何|怎么|怎麼|怎样|怎樣|如何|"
        "吗|嗎|呢|的|地|得|了|着|著|过|過|是|在|于|於|和|与|與|及|以及|或|而|并|並|且|被|把|将|將|由|从|從|向|对|對|对于|對於|为|為|以|因|因为|因為|"
        "由于|由於|所以|会|會|可|可以|能|能够|能夠|应|應|应当|應當|就|都|也|还|還|又|再|很|最|更|其|其中|这|這|那|该|該|此|有|没有|沒有|之|所|等|"
        "一般|主要|通常|大约|大約|约|約|到|至|中|上|下|里|裡|时|時|后|後|前|年|月|日|个|個|种|種|名|叫|称|稱|称为|稱為|什|么|麼|进行|進行|使|让|讓|"
        "原因|是因为|是因為|分别|分別|一个|一個|一种|一種|主要是|是什么|起来|起來|出|来|來|去|做|要|不|他|她|它|们|們|需要|属于|屬於|作为|作為|怎|样|樣",
        asks="什么|什麼|哪|谁|誰|何时|何時|何|多少|多久|多长|多長|多大|多高|多远|多遠|几|幾|为什么|為什麼|怎么|怎麼|怎样|怎樣|如何|吗|嗎|呢|是否|是不是|能否|可否|有没有|有沒有|"
        "还是|還是|多重|多深|多宽|多寬",
        who="谁|誰|什么人|什麼人|哪位|何人|哪一位|哪个人|哪個人",
        when="何时|何時|什么时候|什麼時候|哪年|哪一年|哪天|哪一天|何年|几时|幾時|哪个月|哪個月|几月|幾月|什么时间|什麼時間|哪个世纪|哪個世紀|哪个朝代",
        many="多少|多久|多长时间|多長時間|几|幾|多大|多高|多远|多遠|多长|多長|多重|多深",
        why="为什么|為什麼|为何|為何|什么原因|什麼原因|原因是",
        where="哪里|哪裡|哪儿|何处|何處|什么地方|什麼地方|哪个城市|哪個城市|哪个国家|哪個國家|哪座城市|何地|哪个地区",
        time="年|月|日|号|號|时|時|点|點|分|秒|周|週|天|星期|世纪|世紀|季|春|夏|秋|冬|早|晚|夜|前|后|後|期间|期間|时期|時期|代|朝|当|當|初|末|以来|以來|起|今|昨|明|刻|立即|旬|岁|歲",
        number="零|〇|一|二|两|兩|三|四|五|六|七|八|九|十|百|千|万|萬|亿|億|半|几|幾|数|數|多|少|倍|成|全部|所有|每|都|无|無|没有|沒有|不限|壹|贰|叁",
        verdict="是|否|是的|不是|对|對|不对|不對|正确|正確|错误|錯誤|会|會|不会|不會|能|不能|有|没有|沒有",
        either="还是|還是|或者|抑或",
        negation="不|没|沒|无|無|非|未|勿|别",
        opposites="增加/减少|增加/減少|上升/下降|提高/降低|上涨/下跌|上漲/下跌|高于/低于|高於/低於|以上/以下|升高/降低|增长/下降|增長/下降|"
        "扩大/缩小|擴大/縮小|之前/之后|之前/之後|上调/下调|上調/下調|加强/减弱|延长/缩短|延長/縮短",
        larger="高于|低于|高於|低於|多于|少于|多於|少於|大于|小于|大於|小於|早于|晚于|早於|晚於|长于|短于|长於|短於|超过|超過|更高|更低|更多|更少|更大|更小|更早|更晚|更长|更短|更長|"
        "较高|较低|较多|较少|较大|较小|較高|較低|較多|較少|較大|較小|比",
        source="本文|本段|本节|本節|文中|文章|原文|上文|下文|短文|段落|这段|這段|该段|該段|上述|作者|材料|文本|这篇|這篇|该文|該文|篇章|课文|全文|资料中|資料中|这份文件|這份文件|"
        "该文件|該文件|文档|文檔|笔者|筆者|上面的|以上内容|以上內容|选文|選文|节选|節選|这份资料|這份資料|此文|依据资料|文段",
        pointing="他|她|它|他们|她们|它们|他們|她們|它們|这|這|那|其|该|該|此|同批|后来|後來|上述|前者|后者|後者|两者|兩者|当时|當時|同年|同一",
        unknown="不知道|不清楚|不确定|不確定|不太确定|不太確定|没有说明|沒有說明|未说明|未說明|未提及|没有提到|沒有提到|没有提及|沒有提及|无法回答|無法回答|无法确定|無法確定|无法得知|無法得知|"
        "暂无|暫無|未提供|没有提供|沒有提供|答不上来|答不上來|不能回答|抱歉|对不起|對不起|不详|不詳|未知|没有答案|沒有答案|无答案|無答案|没有相关|沒有相關|无相关|無相關|"
        "没有信息|文中没有|文中沒有|未给出|未給出|没有给出|沒有給出|不得而知|无可奉告|無可奉告|没有写|沒有寫|没写|沒寫|无从|無從|看不出|不了解|没有记载|沒有記載|找不到",
        orders="请|請|试述|試述|简述|簡述|列举|列舉|说明|說明|解释|解釋|描述|概括|写出|寫出|谈谈|談談|说出|說出|指出",
    ),
    "ja": Known(
        empty="何|なに|なん|どの|どれ|どんな|どのような|どのように|どう|どこ|だれ|誰|いつ|いくつ|いくら|なぜ|どうして|どちら|どなた|どのくらい|どれくらい|どれほど|"
        "的|等|者|年|月|日|時|場合|為|事|物|所|中|前|後|上|下|約|主|際|名|言|呼|行|使|必要|理由|原因|ため|もの|こと|という|とき|よる",
        asks="何|なに|なん|どの|どれ|どんな|どう|どこ|だれ|誰|いつ|いくつ|いくら|なぜ|どちら|どなた|幾|でしょう|ですか|ますか|のか",
        who="誰|だれ|どなた|何者|何という人",
        when="いつ|何年|何月|何日|何時ごろ|何世紀|いつから|いつまで",
        many="いくつ|いくら|何人|何%|何パーセント|何割|何倍|どのくらい|どれくらい|どれほど|何回|何個|何歳|何年間|何か月|何日間|何時間|何分|何件|何円|何種類|何万|何社|何度|何キロ|何メートル",
        why="なぜ|どうして|何故|理由は",
        where="どこ|何県|どの国|どの都市|どの町|どの地域|何という町",
        time="年|月|日|時|分|秒|週|世紀|期|季|春|夏|秋|冬|朝|昼|夜|夕|前|後|中|代|間|頃|ころ|ごろ|とき|まで|から|以降|以来|初|末|直ちに|すぐ|今|昨|翌|歳|場合|たら|旬|つど|ごと|際",
        number="零|〇|一|二|三|四|五|六|七|八|九|十|百|千|万|億|兆|半|数|倍|割|全|すべて|ひとつ|ふたつ|ふたり|ひとり|みっつ|多|少|毎|ゼロ|なし|ダース|無期限|無制限",
        verdict="はい|いいえ|正しい|誤り|本当|うそ|そうです|違います|真|偽",
        either="それとも|または|あるいは|ですか、",
        negation="ない|なかっ|ません|ず|無|不|非|未",
        opposites="増加/減少|上昇/下降|上昇/低下|上がっ/下がっ|上がる/下がる|高い/低い|多い/少ない|増え/減っ|増える/減る|以上/以下|以前/以後|拡大/縮小|引き上げ/引き下げ|延長/短縮|強/弱|上回/下回",
        larger="より高い|より低い|より多い|より少ない|より大きい|より小さい|より長い|より短い|より早い|より遅い|高い|低い|多い|少ない|大きい|小さい|長い|短い|早い|遅い|高く|低く|多く|少なく|大きく|小さく|長く|短く|早く|遅く|上回|下回",
        source="本文|文章|この文|上の文|次の文|筆者|著者|段落|上記|この記事|記事|この資料|資料によ|パッセージ|文中|下の文|抜粋|この文書|文書によ|テキスト|作者は|前文|引用文|原文|課題文|先の記述|記述では|記述によ|上の記述",
        pointing="それ|これ|あれ|その|この|あの|そこ|ここ|彼|彼女|彼ら|同社|同氏|同年|当時|そのとき|両者|前者|後者|同法|同地|そう",
        unknown="わかりません|分かりません|わからない|分からない|知りません|不明|書かれていません|書かれていない|記載されていません|記載されていない|記載がありません|述べられていません|述べられていない|"
        "述べていません|述べていない|答えられません|答えられない|回答できません|お答えできません|情報がありません|情報はありません|情報がない|申し訳|すみません|該当なし|特になし|記述がない|記述はない|記述がありません|"
        "触れられていない|触れられていません|判断できません|判断できない|言及されていません|言及されていない|載っていません|載っていない|答えは不明|未詳|ごめん|なし",
        orders="しなさい|せよ|答えよ|述べよ|書きなさい|説明して|してください|ください|挙げよ|選びなさい|なさい|教えて|まとめよ",
    ),
    "th": Known(
        empty="อะไร|ใคร|เมื่อไร|เมื่อไหร่|เมื่อใด|ที่ไหน|ที่ใด|เท่าไร|เท่าไหร่|เท่าใด|กี่|ทำไม|เพราะเหตุใด|เหตุใด|อย่างไร|ยังไง|ไหน|ใด|บ้าง|หรือไม่|หรือ|ที่|ซึ่ง|ของ|และ|ใน|ให้|ได้|"
        "เป็น|คือ|มี|จาก|โดย|กับ|ว่า|จะ|ถูก|ไม่|ต้อง|ควร|แล้ว|ก็|นี้|นั้น|การ|ความ|เพื่อ|เพราะ|เนื่องจาก|เมื่อ|ถึง|ต่อ|ตาม|แก่|มา|ไป|อยู่|กว่า|คน|ปี|ครั้ง|ชื่อ|เรียก|ทำ|อย่าง|ชนิด|ประเภท|สาเหตุ|ด้วย|แต่|ทั้ง|ระหว่าง|"
        "หลัง|ก่อน|ขึ้น|ลง|ออก|เข้า|ใช้|ส่วน|วัน|เดือน|ภายใน|ชั่วโมง|นาที|บาท|หน่วยงาน|อายุ|พบ|เกิด|ประมาณ|ราว|ใคร|ผู้|เขา|มัน|พวก",
        asks="อะไร|ใคร|เมื่อไร|เมื่อไหร่|เมื่อใด|ไหน|ใด|เท่าไร|เท่าไหร่|กี่|ทำไม|อย่างไร|ยังไง|หรือไม่|ไหม|หรือเปล่า|มั้ย|หรือยัง",
        who="ใคร|ผู้ใด|คนใด|ท่านใด|คนไหน",
        when="เมื่อไร|เมื่อไหร่|เมื่อใด|ปีใด|ปีไหน|วันใด|วันไหน|เดือนใด|ตอนไหน|พ.ศ. ใด|ค.ศ. ใด|พ.ศ.ใด|ค.ศ.ใด",
        many="เท่าไร|เท่าไหร่|เท่าใด|กี่|นานแค่ไหน|มากแค่ไหน|ร้อยละเท่า",
        why="ทำไม|เพราะเหตุใด|เหตุใด|เพราะอะไร",
        where="ที่ไหน|ที่ใด|จังหวัดใด|ประเทศใด|เมืองใด|จังหวัดไหน|ประเทศไหน|เมืองไหน",
        time="ปี|เดือน|วัน|ชั่วโมง|นาที|วินาที|สัปดาห์|ศตวรรษ|ยุค|สมัย|ฤดู|เช้า|เย็น|คืน|กลางวัน|ก่อน|หลัง|เมื่อ|ระหว่าง|ช่วง|ต้น|ปลาย|กลาง|พ.ศ|ค.ศ|ขณะ|ตอน|จนถึง|ทันที|ตั้งแต่|เวลา|ภายใน|ไตรมาส|หาก|ถ้า|มกราคม|"
        "กุมภาพันธ์|มีนาคม|เมษายน|พฤษภาคม|มิถุนายน|กรกฎาคม|สิงหาคม|กันยายน|ตุลาคม|พฤศจิกายน|ธันวาคม",
        number="ศูนย์|หนึ่ง|สอง|สาม|สี่|ห้า|หก|เจ็ด|แปด|เก้า|สิบ|ร้อย|พัน|หมื่น|แสน|ล้าน|ครึ่ง|เท่า|หลาย|ทั้งหมด|ทุก|ส่วนใหญ่|คู่|โหล|ไม่มี|เดียว|บาง|มาก|น้อย",
        verdict="ใช่|ไม่ใช่|ถูก|ผิด|จริง|เท็จ|ได้|ไม่ได้|มี|ไม่มี",
        either="หรือ",
        negation="ไม่|มิ|ไร้|ปราศจาก",
        opposites="เพิ่มขึ้น/ลดลง|สูงกว่า/ต่ำกว่า|มากกว่า/น้อยกว่า|เพิ่ม/ลด|สูงขึ้น/ต่ำลง|ยาวขึ้น/สั้นลง|ขยาย/หด",
        larger="สูงกว่า|ต่ำกว่า|มากกว่า|น้อยกว่า|ใหญ่กว่า|เล็กกว่า|ยาวกว่า|สั้นกว่า|เร็วกว่า|ช้ากว่า|ก่อนกว่า|หลังกว่า|นานกว่า|กว่า",
        source="ข้อความ|บทความ|เนื้อเรื่อง|เนื้อหาข้างต้น|ย่อหน้า|ผู้เขียน|ผู้แต่ง|ตามที่กล่าวข้างต้น|ข้างต้น|ข้างบน|ยกมา|ตามเอกสาร|จากเอกสาร|เนื้อความ|เอกสารนี้|บทอ่าน|เรื่องที่อ่าน|ในเนื้อหา|ข้อเขียน|ตอนที่อ่าน|เอกสารฉบับนี้|ดังกล่าวข้างต้น",
        pointing="มัน|เขา|เธอ|นี้|นั้น|ดังกล่าว|พวกเขา|สิ่งนี้|สิ่งนั้น|ที่นั่น|ที่นี่|เหล่านี้|เหล่านั้น|ท่านผู้นั้น|ท่าน|แห่งนี้|ทั้งสอง",
        unknown="ไม่ทราบ|ไม่รู้|ไม่แน่ใจ|ไม่ได้ระบุ|ไม่ระบุ|ไม่มีข้อมูล|ไม่ได้กล่าว|ไม่สามารถตอบ|ตอบไม่ได้|ขออภัย|ขอโทษ|ไม่ปรากฏ|ไม่พบข้อมูล|ไม่มีคำตอบ|ไม่ได้บอก|ไม่ได้พูดถึง|ไม่มีระบุ|ไม่ได้ให้ข้อมูล|เสียใจ|ไม่มีกล่าว|ไม่กล่าวถึง|ไม่อาจ",
        orders="จง|โปรด|กรุณา|ช่วย|ให้อธิบาย|อธิบาย",
        headless="ต้อง|แล้ว|ห้าม|ควร|จะ|ได้|ถูก|เคย|เริ่ม|มี|ใช้|เกิดขึ้น|ซึ่ง|โดย|และ|ทำ|ตั้ง|ย้าย|พบ|มัก|ขาย|ขึ้น|ยื่น|อยู่|ส่ง|เป็น|ให้",
    ),
    "ar": Known(
        empty="ما|ماذا|من|متى|أين|كيف|كم|لماذا|أي|أية|هل|في|على|إلى|عن|مع|بين|بعد|قبل|عند|حتى|منذ|خلال|هو|هي|هم|هما|هذا|هذه|ذلك|تلك|التي|الذي|الذين|"
        "اللذان|أن|إن|أنه|أنها|لأن|لأنه|لأنها|كان|كانت|يكون|تكون|قد|لم|لا|لن|ليس|ليست|أو|و|ثم|كل|بعض|غير|عام|سنة|يتم|تم|حسب|وفق|بسبب|نحو|حوالي|ب|ل|ك|ف|"
        "يسمى|تسمى|اسم|نوع|أكثر|أقل|له|لها|لهم|به|بها|فيه|فيها|منه|منها|عليه|عليها|إذا|كما|مثل|أما|بلغ|بلغت|يبلغ|تبلغ|عدد|مقدار|نسبة|سبب|يوم|شهر|وهو|وهي|"
        "الذى|بأن|وذلك|لدى|أمام|ضد|دون|أثناء|مما|عما|بم|بماذا|لم|علام|إلام|فيم|مم",
        asks="ما|ماذا|من|متى|أين|كيف|كم|لماذا|أي|أية|هل|بم|بماذا|لم|علام|فيم|مم|مما|عما|ممن|لمن|بكم|أيهما|أيها",
        who="من|لمن|ممن|بمن",
        when="متى|في أي عام|في أي سنة|في أي يوم|في أي شهر|في أي قرن|أي عام|أي سنة|منذ متى",
        many="كم|بكم|ما نسبة|ما عدد|ما مقدار|ما النسبة",
        why="لماذا|لم|ما سبب|ما السبب",
        where="أين|في أي مدينة|في أي بلد|في أي دولة|من أين|إلى أين",
        time="يناير|فبراير|مارس|أبريل|مايو|يونيو|يوليو|أغسطس|سبتمبر|أكتوبر|نوفمبر|ديسمبر|عام|سنة|شهر|يوم|أسبوع|قرن|ساعة|دقيقة|صباح|مساء|ليل|فجر|ظهر|"
        "قبل|بعد|عند|منذ|خلال|حتى|أثناء|حين|عندما|صيف|شتاء|ربيع|خريف|سنوات|أشهر|أيام|أعوام|ساعات|نهاية|بداية|أواخر|أوائل|الآن|فور|رمضان|محرم|هجري|"
        "كانون|شباط|آذار|نيسان|أيار|حزيران|تموز|آب|أيلول|تشرين|منتصف|إذا|مطلع|عقد|عهد|سنتين|شهرين|يومين|عامين|أسبوعين|أسابيع|ما دام|ما دامت|طالما|لحظة|فورا|طوال|كلما|لما|مدة|موعد|آنذاك|غداة",
        number="صفر|واحد|واحدة|اثنان|اثنين|اثنتان|اثنتين|ثلاث|ثلاثة|أربع|أربعة|خمس|خمسة|ست|ستة|سبع|سبعة|ثمان|ثماني|ثمانية|تسع|تسعة|عشر|عشرة|عشرون|عشرين|"
        "ثلاثون|ثلاثين|أربعون|أربعين|خمسون|خمسين|ستون|ستين|سبعون|سبعين|ثمانون|ثمانين|تسعون|تسعين|مئة|مائة|مئتا|مئتي|ألف|آلاف|مليون|ملايين|مليار|نصف|ثلث|"
        "ربع|خمس|ضعف|ضعفين|مرة|مرتين|مرتان|مرات|كل|جميع|معظم|عدة|بضع|لا يوجد|سنتان|سنتين|عامان|عامين|شهران|شهرين|يومان|يومين|ساعتان|ساعتين|درجتان|درجتين|أسبوعان|أسبوعين|بالمئة|ثلثا|ثلثي|ثلثين|"
        "سنة|شهر|يوم|ساعة|أسبوع|عام",
        verdict="نعم|لا|صح|خطأ|صحيح|ربما|كلا|بلى",
        either="أم|أو",
        negation="لا|لم|لن|ليس|ليست|غير|دون|بدون|ما لم",
        opposites="ارتفع/انخفض|ارتفعت/انخفضت|ارتفاع/انخفاض|زيادة/نقص|زاد/نقص|أكثر/أقل|أعلى/أدنى|رفع/خفض|فوق/تحت|يزيد/يقل|تزيد/تقل",
        larger="أعلى|أدنى|أكثر|أقل|أكبر|أصغر|أطول|أقصر|أسبق|أبكر|أحدث|أقدم|أبعد|أقرب",
        source="النص|الفقرة|المقال|المقالة|الكاتب|المؤلف|القطعة|الوثيقة|المقطع|المستند|النصوص|المقتطف|النص أعلاه|كاتب النص|المذكور أعلاه|أعلاه|كاتب المقال|المادة المقروءة",
        pointing="هذا|هذه|ذلك|تلك|هناك|هنا|هؤلاء|أولئك|ذاك|به|بها|له|لها|لهم|فيه|فيها|عليه|عليها|منه|منها|منهم|إليه|إليها|عنه|عنها|بعدها|بعده|قبلها|قبله|"
        "حينئذ|حينها|إذن|عندئذ|أيضا|المذكور|المذكورة",
        unknown="لا أعرف|لا أعلم|لا أدري|غير معروف|غير مذكور|لم يذكر|لم يرد|لا يذكر|لا توجد معلومات|لا معلومات|لا يوجد|غير محدد|لا يمكن|لا أستطيع|آسف|"
        "أعتذر|عذرا|لا إجابة|لا جواب|غير واضح|لا يوضح|لم يوضح|لم يحدد|لا يتضمن|لست متأكدا|غير متوفر|غير متوفرة|لا تتوفر|مجهول|لا يشير|لا يجيب|لا يحدد|لا تذكر",
        headless="وما|وماذا|ومن|ومتى|وأين|وكيف|وكم|ولماذا|وأي|وهل|وعلى ماذا|وإلى ماذا|وعلى|وإلى|وفي|وبم|فما|فمن|فماذا",
        orders="اذكر|اشرح|وضح|عدد|عرف|صف|اكتب|لخص|بين|قارن|حدد|تحدث|استخرج|أجب|ترجم|ناقش|علل",
    ),
}
"""By ISO 639-1 code."""


def knows(language: str) -> bool:
    """Whether there are lists for a language."""
    return language in KNOWN


@cache
def pattern(language: str, field: str) -> regex.Pattern[str] | None:
    """The pattern of one list of a language for normalised text, or None where there is no list.

    Words stand alone, except in scripts without spaces, in Korean before a particle and in Arabic after a prefix.
    """
    words = getattr(KNOWN[language], field) if language in KNOWN else ""
    if not words:
        return None
    some = "|".join(sorted(map(regex.escape, map(_kept, words.split("|"))), key=len, reverse=True))
    if language in _APART and language != "ko":
        return regex.compile(f"(?:{some})")
    if language == "ko":
        left = "" if field in ("negation", "unknown", "asks", "time", "number", "opposites", "orders") else r"(?<![\w])"
        return regex.compile(rf"{left}(?:{some})")
    prefix = "(?:و|ف)?(?:ب|ل|ك)?(?:ال)?" if language == "ar" and field != "unknown" else ""
    return regex.compile(rf"(?<!\w){prefix}(?:{some})(?!\w)")


@cache
def words(language: str, field: str) -> frozenset[str]:
    """The normalised words of one list of a language."""
    listed = getattr(KNOWN[language], field) if language in KNOWN else ""
    return frozenset(map(normalized, filter(None, listed.split("|"))))


@cache
def opposites(language: str) -> tuple[tuple[regex.Pattern[str], regex.Pattern[str]], ...]:
    """Patterns of words and of their opposites, both ways round."""
    listed = KNOWN[language].opposites if language in KNOWN else ""
    edge = "" if language in _APART else r"(?!\w)"
    start = "" if language in _APART else r"(?<!\w)"
    pairs = []
    for pair in filter(None, listed.split("|")):
        one, other = (regex.compile(start + regex.escape(normalized(word)) + edge) for word in pair.split("/"))
        pairs += [(one, other), (other, one)]
    return tuple(pairs)


def _kept(word: str) -> str:
    # A list may end a word with a space to keep it apart from longer ones.
    return normalized(word) + " " * word.endswith(" ")
