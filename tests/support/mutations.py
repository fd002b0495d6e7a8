"""Random changes of settings, texts and JSON, as slips, tools and disks make them."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import yaml

_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 64, 1000, 100_000, 10**9, 2**31, 2**63, 10**30, -(10**9)),
    *(0.0, 0.5, -0.5, 1e-300, 1e300, float("inf"), float("-inf"), float("nan")),
    *("", " ", "text", "null", "1", "../..", "/", "\0", "a" * 5000, "é\u200b😀", "${NOWHERE}", "~nobody"),
    *([], {}, [None], [[]], [1, 2, 3], {"kind": "text"}, {"kind": None}, [0] * 1000),
)


def nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value within nested dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield (*path, key)
        yield from nodes(each, (*path, key))


def mutated(content: Any, draw: random.Random) -> Any:
    """Return a copy of nested dicts and lists with one to three values changed, removed, renamed or exchanged."""
    content = copy.deepcopy(content)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        paths = list(nodes(content))
        if paths:
            _change(content, draw.choice(paths), paths, draw)
    return content


def _change(content: Any, path: tuple[Any, ...], paths: list[tuple[Any, ...]], draw: random.Random) -> None:
    parent, key = _at(content, path[:-1]), path[-1]
    action = draw.random()
    if action < 0.6:
        parent[key] = copy.deepcopy(draw.choice(_VALUES))
    elif action < 0.7:
        del parent[key]
    elif action < 0.8 and isinstance(parent, dict):
        parent[draw.choice([f"{key}s", key[1:], key.upper(), "kind", "preset", "number 1"])] = parent.pop(key)
    elif action < 0.9:
        parent[key] = copy.deepcopy(_at(content, draw.choice(paths)))
    else:
        for _ in range(draw.choice([1, 3, 60])):
            parent[key] = draw.choice([[parent[key]], {"a": parent[key]}])


def _at(content: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        content = content[key]
    return content


def mutated_text(text: str, draw: random.Random) -> str:
    """Return a text with characters replaced, removed or inserted, or lines repeated."""
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(text) + 1)
        end = min(len(text), place + draw.choice([0, 1, 2, 10, 100]))
        inserted = draw.choice(["", ":", "{", "[", "]", "}", "\t", "\n", "- ", "&a ", "*a", "!!set ", "'", "9" * 30])
        text = text[:place] + inserted * draw.choice([1, 1, 1, 600]) + text[end:]
    return text


def mutated_settings(settings: dict[str, Any], draw: random.Random) -> str:
    """Return the YAML of mutated settings: the values, the text, or aliases that multiply."""
    action = draw.random()
    if action < 0.75:
        return str(yaml.safe_dump(mutated(settings, draw), sort_keys=False))
    text = str(yaml.safe_dump(settings, sort_keys=False))
    if action < 0.95:
        return mutated_text(text, draw)
    levels, width = draw.randint(1, 9), draw.randint(2, 9)
    form: Callable[[int], str] = draw.choice(
        [
            lambda n: f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]",
            lambda n: f"a{n}: &a{n} {{{', '.join(f'b{i}: *a{n - 1}' for i in range(width))}}}",
        ]
    )
    lines = ["a0: &a0 {x: 1}", *(form(n) for n in range(1, levels + 1))]
    return "\n".join(lines) + "\n" + text.replace(draw.choice(text.split(": ")[1:-1]), f" *a{levels}\n", 1)


def mutated_json(content: Any, draw: random.Random) -> str:
    """Return the JSON of mutated content, or mutated text of it."""
    if draw.random() < 0.8:
        return json.dumps(mutated(content, draw))
    return mutated_text(json.dumps(content), draw)
