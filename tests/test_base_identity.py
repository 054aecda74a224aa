"""Whether what lies somewhere came of the same inputs, and which one changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from optimsyn.base.files import write_json
from optimsyn.base.identity import Identity, differing, digest_of
from optimsyn.data.records import Pair
from optimsyn.recipe.recipe import FineTune, TargetSpec
from optimsyn.target.encoding import as_sample
from optimsyn.training.fine_tuning import fine_tune

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(min_size=1), values, min_size=1, max_size=4))
def test_the_digest_is_that_of_the_values_in_their_order(inputs: dict[str, Any]) -> None:
    expected = hashlib.sha256(json.dumps(list(inputs.values()), sort_keys=True).encode()).hexdigest()
    identity = Identity.of(inputs)
    assert identity.digest == expected
    assert identity.same_as(identity.saved()) and identity.changed_since(identity.saved()) == ""
    assert Identity.of(inputs, lambda facts: digest_of(facts, 20)).digest == expected[:20]
    kept, rest = Identity.parted({**identity.saved("inputs"), "finished": True}, "inputs")
    assert identity.same_as(kept, "inputs") and rest == {"finished": True}


def test_a_change_is_named_as_far_as_it_is_known() -> None:
    before = Identity.of({"the pairs": [1, 2], "the seed": 7, "the search": {"a": 1}})
    now = Identity.of({"the pairs": [1, 2], "the seed": 8})
    assert now.changed_since(before.saved()) == "the seed and the search"
    assert now.changed_since({"identity": before.digest}) == "something that it depends on"
    assert now.changed_since({}) == "something that it depends on"
    assert now.same_as({"identity": now.digest}), "kept by a version that kept the digest alone"
    assert differing({"a": "1", "b": "2"}, {"b": "3", "c": "4"}) == ["a", "b", "c"]
    assert digest_of({"b": "é", "a": 1}) == digest_of({"a": 1, "b": "é"}) != digest_of({"a": 1, "b": "e"})


def test_a_training_that_an_older_version_finished_is_not_done_again(tmp_path: Path) -> None:
    spec, config = TargetSpec(name="no/such-model"), FineTune()
    pair = Pair(id="p", question="Which?", answer="One.", passage_id="d:0")
    parts = [
        spec.model_dump(mode="json", include={"name", "revision", "dtype", "lora", "max_length"}),
        [as_sample(pair).model_dump(mode="json")],
        config.model_dump(mode="json"),
        3,
    ]
    old = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    (tmp_path / "adapter").mkdir()
    write_json(tmp_path / "fine_tune.json", {"inputs": old, "finished": True})
    assert fine_tune(spec, [pair], config, tmp_path, seed=3) == tmp_path / "adapter"
