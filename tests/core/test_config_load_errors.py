"""Configurations: one level of extends, dotted overrides, and errors with file, line and nearest key."""

import pytest

from avcl_core.config.load import lay_over, read, validate
from avcl_core.config.options import Options
from avcl_core.errors import ConfigError


class Inner(Options):
    rate: float = 0.1
    name: str = "x"


class Outer(Options):
    inner: Inner = Inner()
    count: int
    items: tuple[str, ...] = ()


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def test_values_overrides_and_numbers_as_everybody_writes_them(tmp_path):
    path = write(tmp_path, "a.yaml", "count: 3\ninner:\n  rate: 3e-4\n")
    found = validate(Outer, read(path, ["inner.name=y", "items=[a, b]", "inner.rate=1e-5"]))
    assert found == Outer(count=3, inner=Inner(rate=1e-5, name="y"), items=("a", "b"))


def test_extends_merges_one_level_and_says_where_keys_come_from(tmp_path):
    write(tmp_path, "base.yaml", "count: 1\ninner:\n  rate: 2.0\n  name: base\n")
    path = write(tmp_path, "a.yaml", "extends: base.yaml\ninner:\n  rate: 3.0\n")
    source = read(path)
    assert validate(Outer, source) == Outer(count=1, inner=Inner(rate=3.0, name="base"))
    assert source.place(("count",)).endswith("base.yaml:1")
    assert source.place(("inner", "rate")).endswith("a.yaml:3")
    nested = write(tmp_path, "b.yaml", "extends: a.yaml\n")
    with pytest.raises(ConfigError, match=r"a\.yaml:1: extends within an extended file"):
        read(nested)


def test_another_component_replaces_the_options_of_the_one_below():
    assert lay_over({"method": {"name": "a", "x": 1}}, {"method": {"name": "b", "y": 2}}) == {
        "method": {"name": "b", "y": 2}
    }
    assert lay_over({"method": {"name": "a", "x": 1}}, {"method": {"x": 2}}) == {"method": {"name": "a", "x": 2}}
    assert lay_over({"stream": {"name": "a", "x": 1}}, {"stream": {"name": "b"}}) == {"stream": {"name": "b", "x": 1}}


def test_an_option_given_before_the_components_name_is_kept(tmp_path):
    path = write(tmp_path, "a.yaml", "method: {name: a, x: 1}\n")
    assert read(path, ["method.y=2", "method.name=b"]).tree == {"method": {"name": "b", "y": 2}}


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("count: 1\ninner:\n  rat: 2\n", [], r"a\.yaml:3: inner\.rat: unknown key; did you mean 'rate'\?"),
        ("inner:\n  rate: 2\n", [], r"count: is required and was not given"),
        ("count: many\n", [], r"a\.yaml:1: count: found 'many'"),
        ("count: 1\n", ["inner.rate=fast"], r"override 'inner\.rate=fast': inner\.rate: found 'fast'"),
        ("count: 1\n", ["inner"], r"override 'inner': expected key=value"),
        ("count: 1\n", ["inner..rate=1"], "expected key=value, with dots between levels"),
        ("count: 1\ncount: 2\n", [], r"a\.yaml:2: count: key given twice"),
        ("count: [1\n", [], r"a\.yaml:\d+: not YAML"),
        ("- 1\n", [], "found a list, expected keys and values"),
        ("count: 1\ninner:\n  rate: .nan\n", [], r"a\.yaml:3: inner\.rate: found nan"),
    ],
)
def test_errors_name_the_place_and_the_field(text, overrides, message, tmp_path):
    path = write(tmp_path, "a.yaml", text)
    with pytest.raises(ConfigError, match=message):
        validate(Outer, read(path, overrides))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.yaml: No such file"):
        read(tmp_path / "gone.yaml")


def test_an_empty_file_is_an_empty_configuration(tmp_path):
    assert read(write(tmp_path, "a.yaml", "")).tree == {}
