"""Reading is strict, an error is one line that names the place, and nothing but ConfigError comes out of bad input."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trimtab import methods
from trimtab.config import ConfigError, Reader, apply_settings, canonical, dotted, dump_toml, load_toml, merge, to_plain
from trimtab.data import Classics, TextFiles, TokenFiles, ZipfMarkov
from trimtab.interventions import GlobalClip, QKNorm, SoftCap, SoftClip, SoftTemp
from trimtab.models.gpt import GPTConfig
from trimtab.optim import AdamW, ScheduleConfig
from trimtab.run.reading import read_run
from trimtab.run.spec import EvaluationConfig, RunSpec, Seeds, TrainingConfig, TrainingProtocol

VALID: dict[str, Any] = {
    "learning_rate": 0.01,
    "method": [{"soft_cap": {"cap": 30.0}}],
    "seeds": {"init": 1, "data": 2, "other": 3},
    "common": [{"global_clip": {"max_norm": 1.0}}],
    "model": {"width": 16, "num_layers": 1, "num_heads": 2, "positions": "rotary", "tied": False},
    "data": {"classics": {"vocab_size": 256}},
    "training": {"steps": 40, "batch_size": 4, "precision": "fp32"},
    "schedule": {"shape": "linear", "warmup_steps": 4},
    "optimizer": {"beta2": 0.99},
    "evaluation": {"evaluations": 4},
}


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "run.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(raw: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        read_run(raw, "run.toml")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("run.toml: ")
    return message


# Files


@pytest.mark.parametrize(
    "content",
    [
        b"a = ",
        b"a = 1\na = 2",
        b"a = " + b"9" * 5000,
        b"a = " + b"[" * 100_000,
        b"a = " + b"{b = " * 50_000,
        b"a = 'x\x00y'",
        b"\x00",
        b"\xef\xbb\xbfa = 1",
        b"a = '\xff\xfe'",
        b"a = 2020-13-45",
        b"a = 1e",
        b"[a\n",
    ],
    ids=[
        "no value", "twice", "5000 digits", "nested lists", "nested tables", "NUL in a string", "NUL", "BOM",
        "not UTF-8", "no such day", "half a float", "open header",
    ],
)  # fmt: skip
def test_a_file_that_is_not_toml_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = written(tmp_path, content)
    with pytest.raises(ConfigError, match="not valid TOML") as caught:
        load_toml(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_a_folder_and_an_impossible_name_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.toml", tmp_path, tmp_path / "a\0b.toml", tmp_path / ("x" * 5000)):
        with pytest.raises(ConfigError):
            load_toml(path)


def test_a_file_above_one_mebibyte_is_refused_and_one_of_exactly_that_size_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, "a = 1\n#" + "x" * ((1 << 20) - 7))
    assert path.stat().st_size == 1 << 20
    assert load_toml(path) == {"a": 1}
    path.write_text(path.read_text() + "x")
    with pytest.raises(ConfigError, match="1 MiB"):
        load_toml(path)


def test_an_empty_file_is_an_empty_table(tmp_path: Path) -> None:
    assert load_toml(written(tmp_path, "")) == {}


# Reading


def test_every_setting_that_is_given_arrives() -> None:
    run = read_run(VALID, "run.toml")
    assert run.learning_rate == 0.01
    assert run.method == (SoftCap(cap=30.0),)
    assert run.seeds == Seeds(init=1, data=2, other=3)
    assert run.protocol.common == (GlobalClip(max_norm=1.0),)
    assert run.protocol.model == GPTConfig(width=16, num_layers=1, num_heads=2, positions="rotary", tied=False)
    assert run.protocol.training == TrainingConfig(steps=40, batch_size=4)
    assert run.protocol.schedule == ScheduleConfig(shape="linear", warmup_steps=4)
    assert run.protocol.optimizer == AdamW(beta2=0.99)
    assert run.protocol.evaluation == EvaluationConfig(evaluations=4)


def test_a_method_can_be_named_and_a_run_needs_only_a_learning_rate() -> None:
    run = read_run({"learning_rate": "2^-8", "method": "qk_norm"}, "run.toml")
    assert run.learning_rate == 2.0**-8
    assert run.method == methods.qk_norm.interventions
    assert run.protocol == TrainingProtocol()


@pytest.mark.parametrize(
    ("over", "place", "hint"),
    [
        ({"training": {"stepz": 15}}, "training", "unknown 'stepz'; it takes 'steps'"),
        ({"training": {"steps": True}}, "training.steps", "expected a whole number, got True"),
        ({"training": {"steps": 1.0}}, "training.steps", "expected a whole number, got 1.0"),
        ({"training": {"steps": "40"}}, "training.steps", "expected a whole number"),
        ({"training": {"steps": 0}}, "training", "steps must lie between 1 and 100,000,000, got 0"),
        ({"training": {"steps": 1 << 63}}, "training.steps", "does not fit 64 bits"),
        ({"training": {"precision": "fp16"}}, "training.precision", "fp16"),
        ({"training": {"compile": 1}}, "training.compile", "expected one of true, false, 'auto', got 1"),
        ({"training": {"batch_size": 4, "accumulate": 3}}, "training", "accumulate 3 does not divide batch_size 4"),
        ({"model": {"init_std": True}}, "model.init_std", "expected a number"),
        ({"model": {"init_std": math.nan}}, "model.init_std", "must be finite"),
        ({"model": {"init_std": math.inf}}, "model.init_std", "must be finite"),
        ({"model": {"init_std": 10**400}}, "model.init_std", "too large"),
        ({"model": {"widht": 3}}, "model", "it takes 'width'"),
        ({"model": {"vocab_size": 300}}, "", "model.vocab_size 300 differs from the vocabulary size of the data, 256"),
        ({"data": {"clasics": {}}}, "data", "unknown 'clasics'; did you mean 'classics'?"),
        ({"data": {}}, "data", "expected a table of one key, one of classics"),
        ({"data": {"classics": {}, "zipf_markov": {}}}, "data", "expected a table of one key"),
        ({"data": {"classics": {"vocab_size": 255}}}, "data.classics", "vocab_size must lie between 256"),
        ({"data": {"text_files": {}}}, "data.text_files.paths", "missing"),
        ({"data": {"text_files": {"paths": [1]}}}, "data.text_files.paths[0]", "expected a string, got 1"),
        ({"data": {"text_files": {"paths": "a.txt"}}}, "data.text_files.paths", "expected a list"),
        ({"method": "qknorm"}, "method", "unknown 'qknorm'; did you mean 'qk_norm'?"),
        ({"method": {}}, "method", "expected the name of a method or a list"),
        ({"method": [{"soft_cap": {"kap": 3}}]}, "method[0].soft_cap", "unknown 'kap'; it takes 'cap'"),
        ({"method": [{"soft_cap": {"cap": -1}}]}, "method[0].soft_cap", "cap must be positive"),
        ({"method": [{"qk_norm": {}}, {"soft_cap": {"cap": "x"}}]}, "method[1].soft_cap.cap", "expected a number"),
        ({"common": [{"global_clipp": {}}]}, "common[0]", "did you mean 'global_clip'?"),
        ({"seeds": {"init": 1, "data": 2}}, "seeds.other", "missing"),
        ({"seeds": {"init": -1, "data": 2, "other": 3}}, "seeds", "init must lie between 0"),
        ({"schedule": {"warmup_steps": 40}}, "", "must be below training.steps 40"),
        ({"learning_rate": 0}, "", "learning_rate must be positive"),
        ({"learning_rate": "2^9999"}, "learning_rate", "expected a number or a power"),
        ({"learning_rate": "2**-8"}, "learning_rate", "expected a number or a power"),
        ({"learning_rat": 1.0}, "", "unknown 'learning_rat'; it takes 'learning_rate'"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_place_and_what_would_do(over: dict[str, Any], place: str, hint: str) -> None:
    message = refusal(VALID | over)
    assert message.startswith(f"run.toml: {place}: " if place else "run.toml: ")
    assert hint in message


def test_a_missing_learning_rate_is_named() -> None:
    assert refusal({}) == "run.toml: learning_rate: missing"


def test_a_number_beyond_float_is_refused_as_infinite(tmp_path: Path) -> None:
    raw = load_toml(written(tmp_path, "learning_rate = 1e400"))
    assert "must be finite" in refusal(raw)


@pytest.mark.parametrize("value", ["", [], "abc", 3, None], ids=repr)
@pytest.mark.parametrize("section", ["training", "model", "seeds"])
def test_a_section_that_is_no_table_is_refused_in_the_words_of_the_user(section: str, value: object) -> None:
    message = refusal(VALID | {section: value})
    assert message.startswith(f"run.toml: {section}: ")
    for inside in ("object has no attribute", "is not iterable", "subscriptable"):
        assert inside not in message, f"a message about the reader's own code: {message}"


def test_a_refused_choice_is_shown_in_the_words_of_the_user() -> None:
    message = refusal(VALID | {"training": {"precision": "fp16"}})
    assert "typing." not in message, message


@pytest.mark.parametrize(
    ("text", "value"),
    [("2^-8", 2.0**-8), ("2^0", 1.0), ("2^10", 1024.0), ("2^-0.5", 2.0**-0.5), ("2^999", 2.0**999)],
)
def test_a_power_of_two_can_be_written_as_such(text: str, value: float) -> None:
    assert Reader().read({"cap": text}, SoftCap, "x").cap == value


@pytest.mark.parametrize("text", ["2^", "^2", "2^-", "3^2", " 2^2", "2^2\n", "2^1e3", "2^1000", "0.5", "nan", "inf"])
def test_other_text_is_no_number(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a number"):
        Reader().read({"cap": text}, SoftCap, "x")


def test_a_long_value_is_cut_in_the_message() -> None:
    assert len(refusal(VALID | {"training": {"steps": "x" * 10_000}})) < 200


# Settings on the command line


def test_a_setting_replaces_adds_and_leaves_the_original_alone() -> None:
    raw = {"a": {"b": 1, "c": 2}}
    changed = apply_settings(raw, ["a.b=3", "a.d.e=[1, 2]", "name=free text", "flag=true", "x='quoted'"])
    assert changed == {
        "a": {"b": 3, "c": 2, "d": {"e": [1, 2]}}, "name": "free text", "flag": True, "x": "quoted",
    }  # fmt: skip
    assert raw == {"a": {"b": 1, "c": 2}}


def test_the_last_setting_of_a_key_wins() -> None:
    assert apply_settings({}, ["a=1", "a=2"]) == {"a": 2}


def test_a_value_may_hold_an_equals_sign() -> None:
    assert apply_settings({}, ["name=a=b"]) == {"name": "a=b"}


@pytest.mark.parametrize(
    ("value", "read"), [("1", 1), ("'text'", "text"), ("{ c = 1 }", {"c": 1}), ("qk_norm", "qk_norm"), ("2^-8", "2^-8")]
)
def test_a_quoted_key_is_one_key_whatever_the_value(value: str, read: object) -> None:
    assert apply_settings({}, [f'arms."a b".x={value}']) == {"arms": {"a b": {"x": read}}}


def test_a_quoted_key_may_hold_a_dot() -> None:
    assert apply_settings({}, ['arms."0.5".x=1']) == {"arms": {"0.5": {"x": 1}}}


@pytest.mark.parametrize("setting", ["a", "", "training.steps"])
def test_a_setting_without_a_value_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        apply_settings({}, [setting])


def test_a_setting_cannot_go_through_a_value() -> None:
    with pytest.raises(ConfigError, match="'a' is not a table"):
        apply_settings({"a": 1}, ["a.b=2"])


@pytest.mark.parametrize(
    "setting",
    ["a=" + "9" * 5000, "a=" + "[" * 100_000, "#a=1", "a#=1", "=1", "a..b=1", "a.=1", '"a=1', "a=\0", "[a]#=1"],
    ids=["5000 digits", "nested", "comment", "comment after", "no key", "two dots", "end dot", "quote", "NUL", "table"],
)
def test_a_strange_setting_is_text_or_a_config_error(setting: str) -> None:
    try:
        found: object = apply_settings({}, [setting])
    except ConfigError as error:
        found = str(error)
    assert isinstance(found, dict) or (isinstance(found, str) and "\n" not in found)


@settings(max_examples=300, deadline=None)
@given(path=st.text(alphabet='ab."# []\n\t\\', max_size=8), value=st.text(alphabet="19e-.[]{}\"'ab=\n", max_size=8))
def test_no_setting_raises_anything_but_config_error(path: str, value: str) -> None:
    with contextlib.suppress(ConfigError):
        apply_settings({"a": {"b": 1}}, [f"{path}={value}"])


# Merging, writing, and the one text of a value


def test_merge_lays_tables_over_each_other_and_replaces_lists() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    merged = merge(base, {"a": {"c": [3], "e": {"f": 1}}, "d": {"g": 2}})
    assert merged == {"a": {"b": 1, "c": [3], "e": {"f": 1}}, "d": {"g": 2}}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 1}


def test_merge_with_nothing_is_the_same_and_later_layers_win() -> None:
    assert merge(VALID, {}) == VALID
    assert merge(merge({"a": 1}, {"a": 2}), {"a": 3}) == {"a": 3}


def test_a_dataclass_chosen_by_slug_is_a_table_of_one_key() -> None:
    norm = {"norm": "layer_norm", "across": "head", "eps": 1e-6}
    assert to_plain((SoftCap(cap=3.0), QKNorm())) == [{"soft_cap": {"cap": 3.0}}, {"qk_norm": norm}]
    assert to_plain(Classics()) == {"classics": {"vocab_size": 256}}


def test_dumping_leaves_none_out() -> None:
    assert dump_toml({"a": None, "b": {"c": None, "d": 1}}) == "[b]\nd = 1\n"


def test_canonical_text_is_fixed() -> None:
    assert canonical({"b": 1.0, "a": [True, None, "é"]}) == '{"a":[true,null,"\\u00e9"],"b":1}'
    assert canonical({"x": 1, "y": 2}) == canonical({"y": 2, "x": 1})
    assert canonical({"x": 1}) == canonical({"x": 1.0})  # 50 and 50.0 are the same setting


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_canonical_text_of_a_non_finite_number_is_refused(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical({"a": [number]})


@given(st.dictionaries(st.text(max_size=3), st.floats(allow_nan=False, allow_infinity=False), max_size=5))
def test_canonical_text_keeps_every_float_and_ignores_order(table: dict[str, float]) -> None:
    assert json.loads(canonical(table)) == table
    assert canonical(dict(reversed(table.items()))) == canonical(table)


def test_a_path_is_written_as_toml_writes_it() -> None:
    assert dotted(["arms", "a b", "common", 0, "cap"]) == 'arms."a b".common[0].cap'


# Properties

positive = st.floats(min_value=1e-30, max_value=1e30)
shares = st.floats(min_value=0.01, max_value=1.0)
names = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=5)
any_intervention = st.one_of(
    st.builds(GlobalClip, max_norm=positive),
    st.builds(SoftCap, cap=positive),
    st.builds(SoftTemp, factor=positive),
    st.builds(QKNorm, eps=positive),
    st.builds(SoftClip, high=st.floats(1, 9), low=st.floats(-9, 0)),
)
any_data = st.one_of(
    st.builds(Classics, vocab_size=st.integers(256, 65_536)),
    st.builds(ZipfMarkov, vocab_size=st.integers(2, 65_536), seed=st.integers(0, 9)),
    st.builds(TextFiles, paths=st.lists(names, min_size=1, max_size=3).map(tuple)),
    st.builds(TokenFiles, train=names, held_out=names, vocab_size=st.integers(2, 70_000), dtype=st.just("uint32")),
)


@st.composite
def runs(draw: st.DrawFn) -> RunSpec:
    source = draw(any_data)
    heads = draw(st.integers(1, 4))
    steps = draw(st.integers(2, 10**6))
    accumulate = draw(st.integers(1, 4))
    protocol = TrainingProtocol(
        model=GPTConfig(
            vocab_size=source.vocab_size,
            num_heads=heads,
            width=heads * draw(st.integers(2, 64)) * 2,
            positions=draw(st.sampled_from(["learned", "rotary"])),
            norm=draw(st.sampled_from(["layer_norm", "rms_norm"])),
            bias=draw(st.booleans()),
            init_std=draw(positive),
        ),
        data=source,
        optimizer=AdamW(beta1=draw(st.floats(0, 0.999)), eps=draw(positive)),
        schedule=ScheduleConfig(warmup_steps=draw(st.integers(0, steps - 1)), floor=draw(shares)),
        training=TrainingConfig(steps=steps, accumulate=accumulate, batch_size=accumulate * draw(st.integers(1, 9))),
        common=tuple(draw(st.lists(any_intervention, max_size=2))),
    )
    seeds = st.integers(0, (1 << 32) - 1)
    return RunSpec(
        protocol=protocol,
        method=tuple(draw(st.lists(any_intervention, max_size=3))),
        learning_rate=draw(positive),
        seeds=Seeds(init=draw(seeds), data=draw(seeds), other=draw(seeds)),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(run=runs())
def test_a_run_written_and_read_again_is_the_same_run(tmp_path: Path, run: RunSpec) -> None:
    path = written(tmp_path, dump_toml(run.table()))
    again = read_run(load_toml(path), str(path))
    assert again == run
    assert canonical(again.table()) == canonical(run.table())


def all_paths(value: object, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, inner in pairs for path in [(*at, key), *all_paths(inner, (*at, key))]]


anything = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(), st.text(max_size=4),
        st.sampled_from(["qk_norm", "2^-3", "rotary", "classics"]),
        st.dates(),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=4), inner, max_size=2)),
    max_leaves=4,
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_mutated_run_is_read_or_refused_in_one_line(data: st.DataObject) -> None:
    raw = json.loads(json.dumps(VALID))
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(all_paths(raw)))
        parent = raw
        for key in path[:-1]:
            parent = parent[key]
        what = data.draw(st.sampled_from(["replace", "delete", "rename"]))
        if what == "replace" or isinstance(parent, list):
            parent[path[-1]] = data.draw(anything)
        elif what == "delete":
            del parent[path[-1]]
        else:
            parent[data.draw(st.text(max_size=5))] = parent.pop(path[-1])
    try:
        found: object = read_run(raw, "run.toml")
    except ConfigError as error:
        found = str(error)
    refused = isinstance(found, str) and found.startswith("run.toml: ") and "\n" not in found
    assert refused or isinstance(found, RunSpec)
