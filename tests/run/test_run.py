"""One run: its identity, its folder, and that carrying it out twice gives the same bits."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from trimtab import GPT, GPTConfig, host_for, methods
from trimtab.config import ConfigError, canonical, load_toml
from trimtab.data import ZipfMarkov
from trimtab.data.batches import held_out_batch
from trimtab.intervention import InitRule
from trimtab.interventions import GlobalClip, SoftCap, WeightGate
from trimtab.loss import held_out_loss
from trimtab.method import install
from trimtab.optim import AdamW, Muon, Rates, ScheduleConfig
from trimtab.run.build import build, build_optimizer, weight_matrices, weight_norm
from trimtab.run.execute import execute
from trimtab.run.folder import (
    IntegrityError,
    Outcome,
    RunFolder,
    decode_number,
    encode_number,
    load_outcome,
    load_steps,
)
from trimtab.run.identity import Naming, basis_of, run_id, settled
from trimtab.run.reading import read_run
from trimtab.run.spec import EvaluationConfig, RunSpec, Seeds, TrainingConfig, TrainingProtocol, UserCode
from trimtab.run.user_code import code_identity, normalised

MODEL = GPTConfig(vocab_size=32, context=8, num_layers=1, num_heads=2, width=16)
DATA = ZipfMarkov(vocab_size=32, num_tokens=10_000)
TRAINING = TrainingConfig(steps=12, batch_size=4)
EVALUATION = EvaluationConfig(evaluations=4, final_evaluations=1, num_sequences=8)
PROTOCOL = TrainingProtocol(
    model=MODEL, data=DATA, training=TRAINING, evaluation=EVALUATION, schedule=ScheduleConfig(warmup_steps=2)
)
SPEC = RunSpec(protocol=PROTOCOL, learning_rate=0.01)


def with_training(spec: RunSpec = SPEC, **settings: Any) -> RunSpec:
    training = dataclasses.replace(spec.protocol.training, **settings)
    return dataclasses.replace(spec, protocol=dataclasses.replace(spec.protocol, training=training))


def with_evaluation(**settings: Any) -> RunSpec:
    evaluation = dataclasses.replace(EVALUATION, **settings)
    return dataclasses.replace(SPEC, protocol=dataclasses.replace(PROTOCOL, evaluation=evaluation))


def steps_of(outcome: Outcome, runs: Path) -> bytes:
    return (runs / outcome.run_id / "steps.jsonl").read_bytes()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def finished(runs: Path) -> Outcome:
    return execute(SPEC, runs, keep_weights=True)


# Evaluation steps


def test_evaluations_are_spread_over_the_run_and_close_together_at_its_end() -> None:
    evaluation = EvaluationConfig(evaluations=4, final_evaluations=5)
    assert evaluation.final_steps_of(300) == (288, 291, 294, 297, 300)
    assert evaluation.steps_of(300) == (0, 75, 150, 225, 288, 291, 294, 297, 300)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 19, 20, 21, 100, 12_345])
@pytest.mark.parametrize("evaluations", [1, 7, 20, 500])
def test_every_evaluation_falls_on_a_step_of_the_run(num_steps: int, evaluations: int) -> None:
    evaluation = EvaluationConfig(evaluations=evaluations)
    steps, last = evaluation.steps_of(num_steps), evaluation.final_steps_of(num_steps)
    assert list(steps) == sorted(set(steps))
    assert steps[0] == 0
    assert steps[-1] == last[-1] == num_steps
    assert set(last) <= set(steps)
    assert 0 not in last
    assert all(step >= num_steps - max(1, num_steps // 20) for step in last)


@pytest.mark.parametrize("name", ["evaluations", "final_evaluations", "num_sequences", "explosion_patience"])
def test_a_count_below_one_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must lie between 1 and"):
        EvaluationConfig(**{name: 0})  # pyright: ignore[reportArgumentType]


# Reading


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, "x: learning_rate: missing"),
        ({"learning_rate": -1.0}, "x: learning_rate must be positive, got -1.0"),
        ({"learning_rate": 1, "training": {"steps": 0}}, "x: training: steps must lie between 1 and"),
        ({"learning_rate": 1, "trainin": {}}, "x: unknown 'trainin'"),
    ],
    ids=["no LR", "negative LR", "no steps", "misspelt section"],
)  # fmt: skip
def test_a_refused_run_is_one_line(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_run(raw, "x")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_misspelt_section_is_given_its_near_match() -> None:
    with pytest.raises(ConfigError, match="'training'"):
        read_run({"learning_rate": 1, "trainin": {}}, "x")


@pytest.mark.parametrize("learning_rate", [0.0, -1.0, math.inf, math.nan])
def test_a_learning_rate_that_cannot_be_is_refused(learning_rate: float) -> None:
    with pytest.raises(ValueError, match="learning_rate"):
        RunSpec(protocol=PROTOCOL, learning_rate=learning_rate)


# Identity


def test_equal_runs_have_equal_names_and_a_name_is_20_hexadecimal_digits() -> None:
    again = RunSpec(protocol=dataclasses.replace(PROTOCOL), learning_rate=0.01, seeds=Seeds(init=0, data=0, other=0))
    name = run_id(SPEC, "data")
    assert name == run_id(again, "data")
    assert len(name) == 20
    assert int(name, 16) >= 0


def test_whatever_can_change_the_numbers_changes_the_name() -> None:
    others = [
        dataclasses.replace(SPEC, learning_rate=0.02),
        dataclasses.replace(SPEC, seeds=Seeds.all_equal(1)),
        dataclasses.replace(SPEC, seeds=Seeds(init=0, data=1, other=0)),
        dataclasses.replace(SPEC, method=methods.qk_norm.interventions),
        dataclasses.replace(SPEC, method=(SoftCap(cap=30.0),)),
        dataclasses.replace(SPEC, method=(SoftCap(cap=50.0),)),
        dataclasses.replace(SPEC, protocol=dataclasses.replace(PROTOCOL, common=())),
        dataclasses.replace(SPEC, protocol=dataclasses.replace(PROTOCOL, common=(GlobalClip(max_norm=2.0),))),
        dataclasses.replace(SPEC, protocol=dataclasses.replace(PROTOCOL, optimizer=AdamW(beta2=0.9))),
        dataclasses.replace(SPEC, protocol=dataclasses.replace(PROTOCOL, optimizer=Muon())),
        dataclasses.replace(SPEC, protocol=dataclasses.replace(PROTOCOL, optimizer=AdamW(rates=Rates(embedding=0.5)))),
        dataclasses.replace(SPEC, code=UserCode(model=small_model)),
        dataclasses.replace(SPEC, code=UserCode(optimizer=plain_sgd)),
        with_training(threads=2),
        with_training(accumulate=2),
        with_training(precision="bf16"),
        with_training(compile=True),
        with_evaluation(num_sequences=9),
    ]
    names = [run_id(spec, "data") for spec in (SPEC, *others)] + [run_id(SPEC, "other data")]
    assert len(set(names)) == len(names)


def test_the_names_of_many_runs_are_those_of_the_whole_table() -> None:
    """What runs share is written once; the name is that of everything, written as one table."""
    basis = basis_of(SPEC, "data")
    naming = Naming(basis)
    for learning_rate in (0.01, 1.0):
        for method in ((), methods.qk_norm.interventions, (SoftCap(cap=30.0),)):
            for seed, repeat in ((0, 0), (1, 0), (1, 2)):
                spec = dataclasses.replace(
                    SPEC, learning_rate=learning_rate, method=method, seeds=Seeds.all_equal(seed), repeat=repeat
                )
                text = canonical({"spec": settled(spec), **basis.table()})
                assert naming.id_of(spec) == hashlib.sha256(text.encode()).hexdigest()[:20]


def test_a_run_told_from_its_own_file_has_the_same_name(runs: Path, finished: Outcome) -> None:
    again = read_run(load_toml(runs / finished.run_id / "spec.toml"), "spec.toml")
    assert again == SPEC
    assert run_id(again, DATA.load().fingerprint) == finished.run_id


def test_a_whole_number_where_a_float_belongs_is_the_same_run() -> None:
    whole = dataclasses.replace(SPEC, method=(SoftCap(cap=50),), learning_rate=1)
    real = dataclasses.replace(SPEC, method=(SoftCap(cap=50.0),), learning_rate=1.0)
    assert whole == real
    assert run_id(whole, "data") == run_id(real, "data")


CODE = '''
"""Module."""
import math
# a comment

class A:
    """Class."""
    x: int = 1
    def f(self, y):
        """Method."""
        return math.sqrt(y)  # why

def g(a, b=2):
    return f"{a}" + str(b)
'''


def test_prose_and_layout_do_not_count_as_code() -> None:
    mended = CODE.replace("# a comment", "").replace("  # why", "").replace("f(self, y)", "f(self,  y)")
    mended = mended.replace('"""Module."""', '"""Another\n\ntext."""').replace('    """Class."""\n', "")
    mended = mended.replace('"""Method."""', "'''Other.'''")
    assert mended != CODE
    assert normalised(mended) == normalised(CODE)


@pytest.mark.parametrize(
    ("old", "new"), [("x: int = 1", "x: int = 2"), ("sqrt", "exp"), ("b=2", "b=3"), ("str(b)", "repr(b)"), ("A:", "B:")]
)
def test_a_change_of_code_counts(old: str, new: str) -> None:
    assert normalised(CODE.replace(old, new)) != normalised(CODE)


def test_a_string_that_is_not_a_docstring_counts() -> None:
    assert normalised("def f():\n    x = 'a'\n") != normalised("def f():\n    x = 'b'\n")


def test_an_async_function_may_have_its_docstring_mended() -> None:
    assert normalised("async def f():\n    'a'\n    return 1\n") == normalised(
        "async def f():\n    'b'\n    return 1\n"
    )


USER_CODE = '''
import math
from trimtab import GPT

WIDTH = 8

def unused(x):
    return x

def deep(x):
    return x + 1

def helper(x):
    return deep(x)

class Base:
    def run(self):
        return 1

class Child(Base):
    def go(self):
        return helper(2)

def builder(config):
    """Build."""
    return GPT(config), helper(3), Child, WIDTH

def make(width):
    def build(config):
        return GPT(config), width
    return build
'''


def imported(folder: Path, code: str) -> ModuleType:
    name = f"user_code_{len(list(folder.iterdir()))}"
    path = folder / f"{name}.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_user_code_has_the_same_hash_in_a_file_of_another_name(tmp_path: Path) -> None:
    one, two = imported(tmp_path, USER_CODE), imported(tmp_path, USER_CODE)
    assert code_identity(one.builder).text == code_identity(two.builder).text


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ('"""Build."""', '"""Mended."""', False),
        ("def unused(x):\n    return x", "def unused(x):\n    return 2 * x", False),
        ("helper(3)", "helper(4)", True),
        ("return deep(x)", "return deep(x) * 2", True),
        ("return x + 1", "return x + 2", True),
        ("return helper(2)", "return helper(5)", True),
        ("        return 1", "        return 9", True),
        ("WIDTH = 8", "WIDTH = 16", True),
    ],
    ids=["docstring", "unused", "builder", "helper", "helper of a helper", "class", "base class", "constant"],
)
def test_user_code_counts_if_the_builder_uses_it(tmp_path: Path, old: str, new: str, counts: bool) -> None:
    assert old in USER_CODE
    one, two = imported(tmp_path, USER_CODE), imported(tmp_path, USER_CODE.replace(old, new))
    assert (code_identity(one.builder).text != code_identity(two.builder).text) is counts


def test_two_builders_from_one_factory_are_told_apart_or_refused(tmp_path: Path) -> None:
    module = imported(tmp_path, USER_CODE)
    try:
        hashes = {code_identity(module.make(width)).text for width in (8, 16)}
    except ValueError:
        return
    assert len(hashes) == 2


def test_code_without_a_source_is_refused() -> None:
    namespace: dict[str, Any] = {"__name__": __name__}
    exec("def typed(config): return config", namespace)
    with pytest.raises(ValueError, match="source cannot be found"):
        code_identity(namespace["typed"])


class Builder:
    def __call__(self, config: GPTConfig) -> nn.Module:
        return GPT(config)


@pytest.mark.parametrize(
    "builder",
    [
        functools.partial(GPT),
        Builder(),
        (lambda config: GPT(config)),
    ],
    ids=["partial", "instance", "lambda"],
)
def test_an_unusual_builder_is_named_or_refused_with_a_value_error(builder: Callable[..., Any]) -> None:
    try:
        assert len(code_identity(builder).text) == 64
    except SyntaxError:
        pytest.fail("SyntaxError is no refusal")
    except ValueError:
        pass


# The folder


OUTCOME = Outcome(
    run_id="abc", stopped=None, steps=3, initial_loss=3.0, final_loss=math.nan, norm_ratio=math.inf, spike=0.0,
    log_vocab=3.5, unigram_entropy=3.1, bytes_per_token=math.nan, held_out=((0, 3.0), (3, math.inf)), seconds=0.1,
)  # fmt: skip
ROWS = [{"step": 1, "loss": 3.25}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": None}]


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "abc"
    folder = RunFolder(path)
    folder.begin("learning_rate = 1.0\n", {"torch": "2"})
    for row in ROWS:
        folder.append(row)
    folder.finish(OUTCOME)
    return path


def test_an_outcome_and_its_rows_are_read_as_they_were_written(stored: Path) -> None:
    assert repr(load_outcome(stored)) == repr(OUTCOME)
    assert repr(list(load_steps(stored))) == repr(ROWS)


def test_a_run_that_never_finished_has_no_outcome(tmp_path: Path) -> None:
    assert load_outcome(tmp_path / "missing") is None
    folder = RunFolder(tmp_path / "abc")
    folder.begin("", {})
    folder.append({"step": 1})
    folder.close()
    assert load_outcome(tmp_path / "abc") is None


def test_an_interrupted_attempt_is_cleared(stored: Path) -> None:
    (stored / "left over").write_text("x")
    folder = RunFolder(stored)
    folder.begin("new = 1\n", {})
    folder.close()
    assert load_outcome(stored) is None
    assert sorted(path.name for path in stored.iterdir()) == [
        "environment.json",
        "heartbeat",
        "spec.toml",
        "steps.jsonl",
    ]
    assert (stored / "steps.jsonl").read_text() == ""


def outcome_or_refusal(path: Path) -> str:
    try:
        return repr(load_outcome(path))
    except IntegrityError as error:
        message = str(error)
    assert "delete that folder" in message
    assert str(path) in message
    return "refused"


@pytest.mark.parametrize("name", ["outcome.json", "steps.jsonl"])
def test_a_file_cut_at_any_byte_never_gives_another_outcome(stored: Path, name: str) -> None:
    whole = (stored / name).read_bytes()
    for kept in range(max(0, len(whole) - 200), len(whole)):
        (stored / name).write_bytes(whole[:kept])
        found = outcome_or_refusal(stored)
        assert found in ({"refused"} if name == "steps.jsonl" else {"refused", repr(OUTCOME)}), kept


def test_one_flipped_bit_of_the_rows_is_refused(stored: Path) -> None:
    whole = (stored / "steps.jsonl").read_bytes()
    for index in range(len(whole)):
        (stored / "steps.jsonl").write_bytes(whole[:index] + bytes([whole[index] ^ 1]) + whole[index + 1 :])
        assert outcome_or_refusal(stored) == "refused"


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"{}", b"3", b"\xff", b"[" * 100_000, b'{"files": []}', b'{"files": {"steps.jsonl": 1}}'],
    ids=["empty", "list", "null", "table", "number", "not UTF-8", "nested", "files", "digest"],
)
def test_an_outcome_of_another_shape_is_refused(stored: Path, content: bytes) -> None:
    (stored / "outcome.json").write_bytes(content)
    assert outcome_or_refusal(stored) == "refused"


def test_an_outcome_in_the_folder_of_another_run_or_without_rows_is_refused(stored: Path) -> None:
    moved = stored.rename(stored.with_name("abd"))
    assert outcome_or_refusal(moved) == "refused"
    back = moved.rename(stored)
    (back / "steps.jsonl").unlink()
    assert outcome_or_refusal(back) == "refused"


@pytest.mark.parametrize("number", [0.1, 1e-300, -0.0, 3, None, math.nan, math.inf, -math.inf])
def test_a_number_survives_json(number: float | None) -> None:
    assert repr(decode_number(json.loads(json.dumps(encode_number(number), allow_nan=False)))) == repr(number)


# Carrying it out


def small_model(config: GPTConfig) -> nn.Module:
    return GPT(dataclasses.replace(config, init_std=0.1))


def plain_sgd(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=learning_rate)


def test_a_run_leaves_its_files_and_an_outcome_that_states_the_rows(runs: Path, finished: Outcome) -> None:
    folder = runs / finished.run_id
    assert {path.name for path in folder.iterdir()} == {
        "spec.toml", "environment.json", "steps.jsonl", "outcome.json", "checkpoints", "predictions.npz",
    }  # fmt: skip
    assert repr(load_outcome(folder)) == repr(finished)
    rows = load_steps(folder)
    assert [row["step"] for row in rows] == list(range(13))
    evaluated = [(row["step"], row["held_out_loss"]) for row in rows if "held_out_loss" in row]
    assert tuple(evaluated) == finished.held_out
    assert tuple(step for step, _ in evaluated) == EVALUATION.steps_of(12) == (0, 3, 6, 9, 12)
    assert finished.stopped is None
    assert finished.steps == 12
    assert finished.initial_loss == evaluated[0][1] == pytest.approx(math.log(32), abs=0.1)
    assert finished.final_loss == evaluated[-1][1] < finished.initial_loss
    norms = [row["weight_norm"] for row in rows if "weight_norm" in row]
    assert finished.norm_ratio == max(norms) / norms[0]
    schedule = PROTOCOL.schedule
    assert [row["learning_rate"] for row in rows[1:]] == [0.01 * schedule.factor(step, 12) for step in range(12)]


def test_the_spike_is_the_largest_excess_over_the_trailing_median_after_warm_up(runs: Path, finished: Outcome) -> None:
    losses = [row["loss"] for row in load_steps(runs / finished.run_id)][1:]
    excess = [losses[i] - statistics.median(losses[max(0, i - 200) : i + 1]) for i in range(2, 12)]
    assert finished.spike == max(0.0, *excess)


def test_the_final_loss_is_the_median_of_the_final_evaluations_however_dense_the_others_are(tmp_path: Path) -> None:
    spec = with_training(with_evaluation(evaluations=40, final_evaluations=2), steps=40, batch_size=2)
    outcome = execute(spec, tmp_path)
    wanted = [loss for step, loss in outcome.held_out if step in spec.protocol.evaluation.final_steps_of(40)]
    assert outcome.final_loss == statistics.median(wanted)
    dense = with_training(with_evaluation(evaluations=100, final_evaluations=2), steps=100, batch_size=2)
    outcome = execute(dense, tmp_path)
    wanted = [loss for step, loss in outcome.held_out if step in dense.protocol.evaluation.final_steps_of(100)]
    assert outcome.final_loss == statistics.median(wanted)


def test_the_same_run_gives_the_same_bits_after_other_runs(runs: Path, finished: Outcome, tmp_path: Path) -> None:
    execute(dataclasses.replace(SPEC, seeds=Seeds.all_equal(5), method=methods.sigma_reparam.interventions), tmp_path)
    execute(with_training(precision="bf16", accumulate=2), tmp_path)
    again = execute(SPEC, tmp_path)
    assert again.run_id == finished.run_id
    assert steps_of(again, tmp_path) == steps_of(finished, runs)


def test_the_same_run_gives_the_same_bits_in_a_fresh_process(runs: Path, finished: Outcome, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from trimtab.config import load_toml;"
        "from trimtab.run.reading import read_run; from trimtab.run.execute import execute;"
        "execute(read_run(load_toml(Path(sys.argv[1])), 'spec'), Path(sys.argv[2]))"
    )
    spec = runs / finished.run_id / "spec.toml"
    subprocess.run([sys.executable, "-c", code, str(spec), str(tmp_path)], check=True, timeout=200)
    assert steps_of(finished, tmp_path) == steps_of(finished, runs)


def test_seeds_for_weights_and_data_are_separate(tmp_path: Path, runs: Path, finished: Outcome) -> None:
    data = execute(dataclasses.replace(SPEC, seeds=Seeds(init=0, data=1, other=0)), tmp_path)
    init = execute(dataclasses.replace(SPEC, seeds=Seeds(init=1, data=0, other=0)), tmp_path)
    assert data.initial_loss == finished.initial_loss != init.initial_loss
    assert data.final_loss != finished.final_loss


def test_a_method_leaves_the_initial_weights_of_the_family_alone() -> None:
    plain = build(SPEC, torch.device("cpu"))
    for slug, method in methods.catalogue().items():
        if any(isinstance(i, InitRule | WeightGate) for i in method.interventions):
            continue  # they are about the initial weights
        model = build(dataclasses.replace(SPEC, method=method.interventions), torch.device("cpu"))
        state = model.state_dict()
        for key, value in plain.state_dict().items():
            assert key not in state or torch.equal(state[key], value), f"{slug}: {key}"


def test_the_weight_norm_is_that_of_a_loop_over_effective_matrices_and_alters_no_state() -> None:
    for slug in ("baseline", "sigma_reparam"):
        spec = dataclasses.replace(SPEC, method=methods.catalogue()[slug].interventions)
        model = build(spec, torch.device("cpu")).train()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        # The head is the embedding's matrix, so it has no entries of its own.
        parts = [model.token_embedding, model.blocks[0].attn.qkv, model.blocks[0].attn.proj]  # pyright: ignore
        parts += [model.blocks[0].mlp.fc1, model.blocks[0].mlp.fc2]  # pyright: ignore
        expected = math.sqrt(sum(float(part.weight.detach().double().square().sum()) for part in parts))
        model.load_state_dict(before)
        found = float(weight_norm(model, weight_matrices(model)))
        assert found == pytest.approx(expected, rel=1e-3), slug
        assert model.training
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_an_absurd_learning_rate_stops_the_run_as_non_finite(tmp_path: Path) -> None:
    outcome = execute(dataclasses.replace(SPEC, learning_rate=1e30), tmp_path)
    assert outcome.stopped == "non_finite"
    assert 0 < outcome.steps < 12
    assert math.isnan(outcome.final_loss)
    rows = load_steps(tmp_path / outcome.run_id)
    assert rows[-1]["step"] == outcome.steps
    assert repr(load_outcome(tmp_path / outcome.run_id)) == repr(outcome)


def test_a_run_that_explodes_is_given_up_after_half_its_steps(tmp_path: Path) -> None:
    patience = EvaluationConfig(evaluations=20, num_sequences=8, explosion_patience=3, final_evaluations=1)
    protocol = dataclasses.replace(
        PROTOCOL, common=(), evaluation=patience, training=TrainingConfig(steps=40, batch_size=4)
    )
    outcome = execute(dataclasses.replace(SPEC, protocol=protocol, learning_rate=30.0), tmp_path)
    assert outcome.stopped == "exploded"
    late = [(step, loss) for step, loss in outcome.held_out if step > 20]
    assert len(late) == 3
    assert all(loss > math.log(32) + 0.1 for _, loss in late)
    assert outcome.steps == late[-1][0] < 40
    assert outcome.final_loss == late[-1][1]


def test_a_run_that_fails_leaves_no_outcome(tmp_path: Path) -> None:
    def stop(step: int, loss: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(SPEC, tmp_path, progress=stop)
    (folder,) = tmp_path.iterdir()
    assert load_outcome(folder) is None
    assert execute(SPEC, tmp_path).steps == 12


def test_progress_is_told_of_every_step(tmp_path: Path) -> None:
    seen: list[int] = []
    execute(SPEC, tmp_path, progress=lambda step, loss: seen.append(step))
    assert seen == list(range(13))


@pytest.mark.parametrize("slug", ["baseline", "qk_norm_cap", "qkv_norm", "sigma_reparam"])
def test_saved_weights_give_the_recorded_loss_in_a_fresh_model(tmp_path: Path, slug: str) -> None:
    spec = dataclasses.replace(SPEC, method=methods.catalogue()[slug].interventions)
    outcome = execute(spec, tmp_path, keep_weights=True)
    torch.manual_seed(99)
    model = GPT(MODEL)
    install(list(spec.method), host_for(model))  # pyright: ignore[reportArgumentType]
    model.load_state_dict(load_file(tmp_path / outcome.run_id / "checkpoints" / "final.safetensors"))
    held_out = held_out_batch(DATA.load().held_out, num_sequences=8, context=8)
    assert float(held_out_loss(model, held_out, 64)) == outcome.held_out[-1][1]


def test_accumulating_gives_nearly_the_numbers_of_the_whole_batch(tmp_path: Path, finished: Outcome) -> None:
    outcome = execute(with_training(accumulate=4), tmp_path)
    assert outcome.run_id != finished.run_id
    for (_, one), (_, other) in zip(outcome.held_out, finished.held_out, strict=True):
        assert one == pytest.approx(other, abs=1e-3)


def test_bf16_gives_nearly_the_numbers_of_fp32(tmp_path: Path, finished: Outcome) -> None:
    outcome = execute(with_training(precision="bf16"), tmp_path)
    assert outcome.initial_loss == finished.initial_loss
    assert outcome.final_loss != finished.final_loss
    assert outcome.final_loss == pytest.approx(finished.final_loss, abs=0.02)


@pytest.mark.nightly
@pytest.mark.slow
def test_a_compiled_run_gives_nearly_the_numbers_of_an_eager_one(tmp_path: Path) -> None:
    small = dataclasses.replace(PROTOCOL, model=dataclasses.replace(PROTOCOL.model, num_layers=1))
    spec = dataclasses.replace(SPEC, protocol=small)
    eager, compiled = (execute(with_training(spec, compile=on), tmp_path / str(on)) for on in (False, True))
    assert compiled.final_loss == pytest.approx(eager.final_loss, abs=1e-3)
    assert compiled.run_id != eager.run_id


@pytest.mark.nightly
@pytest.mark.slow
def test_a_compiled_run_gives_the_same_bits_before_and_after_runs_of_other_shapes(tmp_path: Path) -> None:
    torch._dynamo.reset()
    spec = with_training(compile=True, steps=4, batch_size=4)
    first = execute(spec, tmp_path)
    bits = steps_of(first, tmp_path)
    torch._dynamo.reset()
    execute(with_training(spec, batch_size=6), tmp_path)
    again = tmp_path / "again"
    assert steps_of(execute(spec, again), again) == bits


def test_the_users_own_model_and_optimizer_are_used(tmp_path: Path, finished: Outcome) -> None:
    spec = dataclasses.replace(SPEC, code=UserCode(model=small_model, optimizer=plain_sgd))
    assert isinstance(build_optimizer(build(spec, torch.device("cpu")), spec), torch.optim.SGD)
    outcome = execute(spec, tmp_path)
    assert outcome.initial_loss != finished.initial_loss


def test_watching_a_run_does_not_change_its_bits(tmp_path: Path, runs: Path, finished: Outcome) -> None:
    seen: list[float] = []
    build_watched = functools.partial(watched_model, seen=seen)
    spec = dataclasses.replace(SPEC, method=methods.qk_norm.interventions)
    plain = execute(spec, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trimtab.run.build.GPT", build_watched)
        watched = execute(spec, tmp_path / "watched")
    assert len(seen) > 100
    assert watched.run_id == plain.run_id
    assert steps_of(watched, tmp_path / "watched") == steps_of(plain, tmp_path)


def watched_model(config: GPTConfig, seen: list[float]) -> nn.Module:
    model = GPT(config)
    for tap in host_for(model).find_taps():
        tap.slot.watchers.append(lambda before, after: seen.append(float(after.abs().max())))
    return model


def test_a_canonical_table_of_a_run_is_json() -> None:
    assert json.loads(canonical(SPEC.table()))["learning_rate"] == 0.01
