"""Settings in YAML and JSON follow the same rules."""

import time

import pytest

from deformdetr._files import FileError, read_json, read_mapping, write_mapping


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json", ".YAML", ".Json"])
def test_written_settings_are_read_again(suffix, tmp_path):
    settings = {"b": [1, 2.5, None, True, "ä: #x"], "a": {"on": "yes", "1": "2001-01-01"}, "empty": {}, "ö": "a\x85b"}
    write_mapping(tmp_path / f"file{suffix}", settings)
    assert read_mapping(tmp_path / f"file{suffix}") == settings


@pytest.mark.parametrize("text", ["", "\n\n", "# a comment\n", "---\n", "\ufeff# after a mark\n"])
def test_yaml_without_a_value_is_an_empty_mapping(text, tmp_path):
    (tmp_path / "file.yaml").write_text(text, encoding="utf-8")
    assert read_mapping(tmp_path / "file.yaml") == {}


def test_aliases_and_merges_are_read(tmp_path):
    (tmp_path / "file.yaml").write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]\n")
    assert read_mapping(tmp_path / "file.yaml") == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
        "c": [{"x": 1, "y": 2}] * 2,
    }


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.yaml", "a: 1\nb: 2\na: 3\n", r"not valid YAML: the key 'a' occurs twice in one mapping, line 3 column 1"),
        ("a.yaml", "x: {a: 1, a: 1}", "the key 'a' occurs twice"),
        ("a.json", '{"x": {"a": 1, "a": 1}}', "not valid JSON: the key 'a' occurs twice in one object"),
        ("a.yaml", "a:\n\t- 1", "not valid YAML: .*line 2 column 1"),
        ("a.yaml", "a: [", "not valid YAML: .*line 1 column 5"),
        ("a.yaml", "on: 1", "a key must be text; quote it, line 1 column 1"),
        ("a.yaml", "a: &a [*a]", "it contains itself"),
        ("a.yaml", "a: 2001-99-99", "not valid YAML: month must be in 1..12"),
        ("a.yaml", "a: !!python/object/apply:os.system [exit]", "not valid YAML: could not determine a constructor"),
        ("a.yaml", "[" * 5000, "not valid YAML: it is nested too deeply"),
        ("a.json", "[" * 100_000, "not valid JSON: it is nested too deeply"),
        ("a.json", "", "not valid JSON: the file is empty"),
        ("a.json", '{"a": ' + "9" * 5000 + "}", "not valid JSON: Exceeds the limit"),
        ("a.json", "[1]", r"must hold a mapping of fields, got a list: \[1\]"),
        ("a.yaml", "words", r"must hold a mapping of fields, got a str: 'words'"),
        ("a.json", "null", r"must hold a mapping of fields, got a NoneType: None"),
        ("a.toml", "a = 1", r"must end in \.yaml, \.yml or \.json"),
        ("a", "a: 1", r"must end in \.yaml, \.yml or \.json"),
    ],
)
def test_invalid_files_are_refused_in_one_line(name, text, reason, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(FileError, match=reason) as caught:
        read_mapping(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("first", ["[1, 1]", "{x: 1, y: 2}"])
def test_aliases_that_expand_to_millions_of_values_are_refused_quickly(first, tmp_path):
    form = "[{}]" if first.startswith("[") else "{{<<: [{}]}}"
    lines = [f"k0: &k0 {first}"]
    lines += [f"k{n}: &k{n} {form.format(', '.join([f'*k{n - 1}'] * 9))}" for n in range(1, 20)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    started = time.process_time()
    with pytest.raises(FileError, match=r"with its aliases expanded, it has more than 200,000 values"):
        read_mapping(tmp_path / "bomb.yaml")
    assert time.process_time() - started < 5


@pytest.mark.parametrize("name", ["a.yaml", "a.json"])
@pytest.mark.parametrize("content", [b"a: \xff", b"\xff\xfea\x00:\x00"])
def test_text_of_another_encoding_is_refused(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=rf"{name} is not text in UTF-8: .* at byte \d"):
        read_mapping(tmp_path / name)


def test_json_of_any_content_and_suffix_is_read(tmp_path):
    (tmp_path / "list.txt").write_text("\ufeff[1, {}]", encoding="utf-8")
    assert read_json(tmp_path / "list.txt") == [1, {}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "a: " + "[" * 5000),
        ("a.yaml", "\n".join(" " * depth + "a:" for depth in range(500))),
        ("a.json", '{"a": ' * 500 + "1" + "}" * 500),
        ("a.json", '{"a": ' + "[" * 60 + "]" * 60 + "}"),
    ],
)
def test_deep_nesting_is_refused_at_once(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    started = time.process_time()
    with pytest.raises(FileError, match="nested too deeply: more than 50 levels"):
        read_mapping(tmp_path / name)
    assert time.process_time() - started < 2


def test_many_aliases_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a 1\nb: [" + ", ".join(["*a"] * 1001) + "]")
    with pytest.raises(FileError, match="more than 1,000 aliases"):
        read_mapping(tmp_path / "a.yaml")


def test_numbers_are_keys_where_they_are_allowed(tmp_path):
    (tmp_path / "a.yaml").write_text("names: {0: cat, 1: dog}")
    assert read_mapping(tmp_path / "a.yaml", number_keys=True) == {"names": {0: "cat", 1: "dog"}}
    (tmp_path / "a.yaml").write_text("names: {0.5: cat}")
    with pytest.raises(FileError, match="a key must be text"):
        read_mapping(tmp_path / "a.yaml", number_keys=True)
