"""Values that Python, TOML or a terminal cannot hold are refused in one printable line that names the place."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trimtab.cli import main
from trimtab.config import ConfigError, Reader, apply_settings, dump_toml, load_toml, merge, printable, shown
from trimtab.run.reading import read_run

DIGITS = "9" * 5000
HEX = "0x" + "f" * 5000


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "run.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        action()
    message = str(caught.value)
    assert message == printable(message)
    assert len(message.encode()) < 300
    return message


@pytest.mark.parametrize("number", [DIGITS, HEX, "9_" * 4999 + "9", str(1 << 63), "[1, " + str(1 << 63) + "]"])
def test_a_whole_number_beyond_64_bits_is_refused_with_its_place(tmp_path: Path, number: str) -> None:
    path = written(tmp_path, f"a = 1\nb.c = {number}\n")
    message = refusal(lambda: load_toml(path))
    assert message.startswith(f"{path}: ")
    assert "line 2" in message or "b.c" in message
    assert "64 bits" in message
    message = refusal(lambda: apply_settings({}, [f"b.c={number}"]))
    assert "--set" in message
    assert "b.c" in message
    assert "64 bits" in message


def test_the_largest_and_the_smallest_whole_numbers_of_toml_are_read(tmp_path: Path) -> None:
    table = {"a": (1 << 63) - 1, "b": -(1 << 63)}
    assert load_toml(written(tmp_path, dump_toml(table))) == table
    assert apply_settings({}, [f"a={table['a']}"]) == {"a": table["a"]}


def test_a_number_beyond_64_bits_is_refused_by_the_reader_too() -> None:
    for number in (10**400, 1 << 20_000):
        message = refusal(lambda number=number: read_run({"learning_rate": number}, "run.toml"))
        assert message.startswith("run.toml: learning_rate: the whole number is too large")


@pytest.mark.parametrize("parts", [66, 300, 2000])
@pytest.mark.parametrize("form", ["{} = 1", "[{}]\nx = 1", "[[{}]]", "x = {{ {} = 1 }}", 'x.{}."end" = 1'])
def test_a_key_of_many_parts_is_refused(tmp_path: Path, form: str, parts: int) -> None:
    key = ".".join("a" * parts)
    path = written(tmp_path, form.format(key))
    assert refusal(lambda: load_toml(path)).startswith(f"{path}: line 1: the key ")
    assert f"the key has {parts} parts" in refusal(lambda: apply_settings({}, [f"{key}=1"]))
    assert "more than 64 parts" in refusal(lambda: apply_settings({}, ["x={" + key + " = 1}"]))


@pytest.mark.parametrize("key", ["a", '"a b"', "'.'"])
def test_a_key_that_fills_the_largest_file_is_refused_at_once(tmp_path: Path, key: str) -> None:
    count = (1 << 20) // (len(key) + 1) - 9
    path = written(tmp_path, ".".join([key] * count) + " = 1")
    start = time.perf_counter()
    assert "more than 64 parts" in refusal(lambda: load_toml(path))
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("text", ["a" * 1_000_000, "'" * 1_000_000, '"' * 1_000_000, "a." * 500_000, ". a" * 300_000])
def test_text_that_resembles_a_long_key_takes_no_time(tmp_path: Path, text: str) -> None:
    start = time.perf_counter()
    refusal(lambda: load_toml(written(tmp_path, text)))
    assert time.perf_counter() - start < 2


def test_sentences_are_not_long_keys(tmp_path: Path) -> None:
    prose = "One. Two and three. " * 100
    assert load_toml(written(tmp_path, f"# {prose}\na = '''\n{prose}'''\nb.c.'d' = 1.5")) == {
        "a": prose,
        "b": {"c": {"d": 1.5}},
    }


@pytest.mark.parametrize("value", ["[" * 70 + "1" + "]" * 70, "{a = " * 70 + "1" + "}" * 70, "[" * 900 + "]" * 900])
def test_values_nested_too_deeply_are_refused(tmp_path: Path, value: str) -> None:
    path = written(tmp_path, f"x = {value}")
    assert "nested too deeply; at most 64 levels" in refusal(lambda: load_toml(path))
    assert "nested too deeply; at most 64 levels" in refusal(lambda: apply_settings({}, [f"x={value}"]))


def test_deep_tables_made_in_python_are_refused_by_every_entry() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    for action in (
        lambda: Reader().read(deep, Some, "f"),
        lambda: apply_settings(deep, []),
        lambda: dump_toml(cycle()),
        lambda: merge(cycle(), cycle()),
        lambda: Reader().read({"number": deep}, Some, "f", at=["x"]),
    ):
        assert "nested too deeply" in refusal(action)


def cycle() -> dict[str, Any]:
    table: dict[str, Any] = {}
    table["a"] = table
    return table


@pytest.mark.parametrize("setting", ["a=\udcff", "\udcff=1", '"\udcff"=1', "a='\udcff'", "\udcff", "a.b=[1, '\ud800']"])
def test_a_setting_that_is_not_utf8_is_refused(setting: str) -> None:
    message = refusal(lambda: apply_settings({}, [setting]))
    assert message.startswith("--set ")
    assert "not valid UTF-8" in message


def test_text_that_is_not_unicode_is_refused_by_the_reader_and_the_writer() -> None:
    assert refusal(lambda: Reader().read({"text": "\udcff"}, Some, "f")).startswith("f: text: ")
    assert "the key is not valid Unicode" in refusal(lambda: Reader().read({"\udcff": 1}, Some, "f"))
    assert "not valid Unicode" in refusal(lambda: dump_toml({"a": ["\udcff"]}))


def test_a_byte_that_is_not_utf8_on_the_command_line_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, "learning_rate = 0.01")
    for arguments in ([str(path), "--set", "method=\udcff"], ["\udcff.toml"], [str(path), "--set", f"a={DIGITS}"]):
        assert main(["run", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        error.encode()


def test_every_message_is_one_printable_line() -> None:
    assert str(ConfigError("a\nb\x1b[31m\udcff")) == "a\N{REPLACEMENT CHARACTER}b" + (
        "\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}"
    )


def test_a_value_that_cannot_be_written_out_is_shown_by_its_type() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    assert shown(deep) == "a value of type list that is too large to show"
    assert shown(1 << 20_000) == "a value of type int that is too large to show"


def test_a_refused_choice_of_any_type_lists_the_choices() -> None:
    for value in ("c" * 10_000, [], {}, 1):
        message = refusal(lambda value=value: Reader().read({"choice": value}, Some, "f"))
        assert message.startswith("f: choice: expected one of 'a', 'b', got ")


# Properties


@dataclass(frozen=True, kw_only=True)
class Inner:
    number: int = 0
    real: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Some:
    number: int = 0
    real: float = 0.0
    text: str = ""
    flag: bool = False
    choice: Literal["a", "b"] = "a"
    numbers: tuple[int, ...] = ()
    inner: Inner = Inner()
    inners: tuple[Inner, ...] = ()
    maybe: int | None = None
    free: Any = None


READER = Reader()  # making one generates code, which takes longer than reading
surrogates = st.text(alphabet=st.characters(codec=None), max_size=6)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(62, 20_000).map(lambda bits: 1 << bits), st.floats(),
    surrogates, st.binary(max_size=4), st.dates(), st.builds(object),
)  # fmt: skip
FIELDS = ["number", "real", "text", "flag", "choice", "numbers", "inner", "inners", "maybe", "free", "x"]
keys = st.one_of(st.sampled_from(FIELDS), surrogates)


def deepened(pair: tuple[object, int]) -> object:
    value, depth = pair
    for level in range(depth):
        value = [value] if level % 2 else {"number": value}
    return value


anything = st.recursive(
    st.one_of(scalars, st.tuples(scalars, st.integers(0, 3000)).map(deepened)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(keys, inner, max_size=3),
        st.dictionaries(st.one_of(keys, st.integers()), inner, max_size=2),
    ),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(raw=anything, where=surrogates)
def test_the_reader_raises_nothing_but_config_error(raw: object, where: str) -> None:
    for table in (raw, dict.fromkeys(("number", "inner"), raw), {"inners": [raw]}, {"free": raw}):
        message = ""
        try:
            assert isinstance(READER.read(table, Some, where), Some)
        except ConfigError as error:
            message = str(error)
        assert message.isprintable()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=40), st.text(max_size=40).map(str.encode)))
def test_no_file_raises_anything_but_config_error(tmp_path: Path, content: bytes) -> None:
    with contextlib.suppress(ConfigError):
        load_toml(written(tmp_path, content))


toml_like = st.lists(
    st.sampled_from(["a", ".", "=", "[", "]", "{", "}", "\n", '"', "'", "9" * 5000, "0xf", ",", " ", "1e9", "a." * 70]),
    max_size=20,
).map("".join)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=toml_like, repeats=st.integers(1, 500))
def test_no_toml_like_text_raises_anything_but_config_error(tmp_path: Path, content: str, repeats: int) -> None:
    text = content * repeats if len(content) < 2000 else content
    for action in (lambda: load_toml(written(tmp_path, text)), lambda: apply_settings({"a": 1}, [text, f"b={text}"])):
        message = ""
        try:
            dump_toml(action())
        except ConfigError as error:
            message = str(error)
        assert message.isprintable()


@settings(max_examples=300, deadline=None)
@given(raw=st.dictionaries(surrogates, anything, max_size=3), setting=st.one_of(surrogates, toml_like))
def test_no_setting_raises_anything_but_config_error(raw: dict[str, Any], setting: str) -> None:
    for text in (setting, f"a={setting}", f"{setting}=1"):
        with contextlib.suppress(ConfigError):
            apply_settings(raw, [text])
