"""Merging and comparing nested settings."""

from deformdetr.engine._overrides import differences, merge


def test_merge_replaces_leaves_and_keeps_the_rest():
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert merge(base, {"a": {"c": [3]}, "e": 4}) == {"a": {"b": 1, "c": [3]}, "d": 3, "e": 4}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 3}


def test_settings_of_another_kind_are_replaced_as_a_whole():
    base = {"backbone": {"kind": "resnet", "name": "resnet50"}}
    assert merge(base, {"backbone": {"kind": "conv"}}) == {"backbone": {"kind": "conv"}}
    assert merge(base, {"backbone": {"kind": "resnet", "dilation": True}}) == {
        "backbone": {"kind": "resnet", "name": "resnet50", "dilation": True}
    }


def test_differences_are_named_by_their_path():
    old = {"a": {"b": 1, "c": {}}, "d": [1, 2]}
    new = {"a": {"b": 2, "c": {}}, "d": [1, 2], "e": {"f": 0}}
    assert differences(old, new) == {"a.b": (1, 2), "e.f": (None, 0)}
