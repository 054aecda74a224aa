"""Endings, particles and prefixes by which words of one language differ that are the same word."""

from __future__ import annotations

from optimsyn.data.language.segment import normalized

# What `grounding` may cut off the end of a word in these languages, without accents.
ENDINGS = {
    "en": "ies ied ing ed es s e ly d al ion ions 's",
    "de": "ern em er en es e n s t st te ten tes ter tem et est ung ungen heit keit lich liche lichen isch ische ischen "
    "end ende enden nd in innen ig ige igen",
}
# Particles and endings of Korean nouns and verbs.
PARTICLES = """은 는 이 가 을 를 의 에 에서 에게 에게서 께 께서 으로 로 으로서 로서 으로써 로써 와 과 랑 이랑 하고 도 만 까지 부터 마다 조차 밖에 보다 처럼
만큼 이나 나 이라 라 이라고 라고 이라는 라는 이란 란 이며 며 이고 고 인 이다 다 입니다 이었다 였다 이었습니다 였습니다 이라서 라서 이어서 여서 이므로 므로 이기 에는 에도 에서는 에서도
으로는 로는 으로도 로도 와는 과는 에만 까지의 부터의 에서의 으로의 로의 와의 과의 에의 들 들이 들은 들을 들의 들에게 이지만 지만 이든 든 씩 째 쯤 가량 경 적 적인 적으로 별 측 님 씨
하다 한다 합니다 하였다 했다 했습니다 하였습니다 하는 한 할 함 하여 해서 해 하고 하며 하면 하기 하므로 하지 하도록 하거나 하던 하게 하자 하려고 하기로 하고자 하여서 하려면
되다 된다 됩니다 되었다 됐다 되었습니다 됐습니다 되는 된 될 됨 되어 되어서 되고 되며 되면 되기 되므로 되지 되도록 되거나 돼 돼서 시키다 시킨다 시킵니다 시켰다 시키는 시킨 시켜 시키고 시켜서 시킴 시키기
받다 받는다 받았다 받은 받는 받아 당하다 당했다 있다 있는 있어 없다 없이 없는
습니다 는다 ㄴ다 었다 았다 었습니다 았습니다 어서 아서 어 아 음 기 기도 기에 기는 기로 기를 기가 던 은 는 을 면 으면 으며 으니 니까 으므로 지 지만 거나 도록 게 자 려고 으려고 든지 네 요 어요 아요 죠 었던 았던 었고 았고 었으며 았으며 었으나 았으나 였으나 이었으나 으나 인데 였는데 이었는데 는데 은데 았지만 었지만
습니까 었습니까 았습니까 입니까 나요 었나요 았나요 었나 았나 는가 은가 인가 는가요 은가요 인가요 었는가 았는가 을까 을까요 던가 는지 은지 인지 었는지 았는지
때문 때문이다 때문입니다 때문에 예요 이에요 이었던 였던 이었으며 였으며 부터다 까지다 이자 이자마자 으로부터 로부터 에게로 에서부터 뿐 뿐이다 대로 같이""".split()
# Particles and suffixes in front of and behind an Arabic word, normalised.
BEFORE_ARABIC = tuple(map(normalized, "وال فال بال كال ولل وب ول فب لل ال و ف ب ك ل س ي ت ن ا م".split()))
AFTER_ARABIC = tuple(map(normalized, "ها هم هن نا كم ات ان ين ون وا تها ته ية يه تين تان اته اتها ه ي ت ا ة ك".split()))
