from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from trimtab.cli import main
from trimtab.config import ConfigError
from trimtab.inspection.page import tev_page
from trimtab.inspection.tev import axis_of, tev_points
from trimtab.run.folder import IntegrityError

NAME = "model.embed_tokens.weight"


def store(path: Path, tokens: int = 40, width: int = 8, scale: float = 1.0, name: str = NAME, extra: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(tokens + width)
    table = scale * torch.randn(tokens, width, generator=generator)
    save_file({name: table, "model.layers.0.mlp.weight": torch.zeros(extra, width)}, path)
    return path


def of_loops(table: torch.Tensor) -> tuple[float, float]:
    """Mean and spread over rows of the population deviation within each, in float64 and by hand."""
    deviations: list[float] = []
    for row in table.double().tolist():
        mean = sum(row) / len(row)
        deviations.append(math.sqrt(sum((value - mean) ** 2 for value in row) / len(row)))
    mean = sum(deviations) / len(deviations)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in deviations) / len(deviations))


def test_tev_of_a_stored_table_is_that_of_loops_in_double_precision(tmp_path: Path) -> None:
    store(tmp_path / "one.safetensors", scale=0.3)
    (point,) = tev_points([tmp_path / "one.safetensors"])
    generator = torch.Generator().manual_seed(48)
    mean, spread = of_loops(0.3 * torch.randn(40, 8, generator=generator))
    assert point.tev["tev_mean"] == pytest.approx(mean, rel=1e-6)
    assert point.tev["tev_std"] == pytest.approx(spread, rel=1e-5)
    assert (point.tokens, point.parameters, point.table) == (40, 40 * 8 + 16 * 8, NAME)


def test_checkpoints_of_one_run_stand_in_order_of_their_steps(tmp_path: Path) -> None:
    for step in (1000, 200, 30):
        store(tmp_path / f"step-{step}.safetensors", scale=step / 1000)
    points = tev_points([tmp_path])
    assert [point.step for point in points] == [30, 200, 1000]
    assert axis_of(points) == ("step", [30.0, 200.0, 1000.0])
    means = [point.tev["tev_mean"] for point in points]
    assert means == sorted(means)


def test_sizes_of_one_family_stand_in_order_of_their_parameters(tmp_path: Path) -> None:
    for name, width in (("small", 8), ("large", 32), ("medium", 16)):
        store(tmp_path / name / "model.safetensors", width=width)
    points = tev_points([tmp_path])
    assert [point.name for point in points] == ["small", "medium", "large"]
    assert axis_of(points)[0] == "parameters"


def test_checkpoints_that_differ_by_a_head_keep_the_order_they_were_given_in(tmp_path: Path) -> None:
    before = store(tmp_path / "before.safetensors", extra=20)
    after = store(tmp_path / "after.safetensors", extra=16)
    points = tev_points([before, after])
    assert [point.name for point in points] == ["before.safetensors", "after.safetensors"]
    assert axis_of(points)[0] == "checkpoint"


def test_a_run_folder_gives_its_readings_and_its_final_weights_once(tmp_path: Path) -> None:
    spec = tmp_path / "run.toml"
    spec.write_text(
        "learning_rate = 0.01\n[model]\nwidth = 16\nnum_layers = 1\nnum_heads = 2\ncontext = 8\n[training]\n"
        "steps = 20\nbatch_size = 4\n[schedule]\nwarmup_steps = 2\n[evaluation]\nevaluations = 2\nnum_sequences = 4\n"
        '[probes]\nnamed = ["tev"]\nevery = 5\n'
    )
    assert main(["run", str(spec), "--out", str(tmp_path / "runs")]) == 0
    points = tev_points([tmp_path / "runs"])
    assert [point.step for point in points] == [1, 5, 10, 15, 20]
    assert [point.tokens for point in points] == [0, 0, 0, 0, 256]
    (run,) = (tmp_path / "runs").iterdir()
    (alone,) = [point for point in tev_points([run]) if point.tokens]
    rows = [json.loads(line) for line in (run / "probes.jsonl").read_text().splitlines()]
    assert alone.tev["tev_mean"] == pytest.approx(rows[-1]["embedding_weight/model/tev_mean"], rel=1e-5)


def test_the_command_writes_figure_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2):
        store(tmp_path / "family" / f"checkpoint-{step}.safetensors", scale=step)
    page, numbers = tmp_path / "tev.html", tmp_path / "tev.json"
    command = ["inspect", "--tev", str(tmp_path / "family"), "--html", str(page), "--json", str(numbers)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "TEV mean by step" in shown
    assert "checkpoint-2.safetensors" in shown
    stored = json.loads(numbers.read_text())
    assert [point["step"] for point in stored] == [1, 2]
    assert stored[1]["tev"]["tev_mean"] == pytest.approx(2 * stored[0]["tev"]["tev_mean"])
    assert "against step" in page.read_text()


def test_an_unusual_name_of_the_table_can_be_given(tmp_path: Path) -> None:
    path = store(tmp_path / "odd.safetensors", name="lexicon")
    with pytest.raises(
        ConfigError, match="has no tensor with the usual name of a token embedding; name it with --embedding"
    ):
        tev_points([path])
    assert tev_points([path], "lexicon")[0].table == "lexicon"
    with pytest.raises(ConfigError, match="has no tensor 'absent'"):
        tev_points([path], "absent")


def test_what_holds_no_checkpoint_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    assert main(["inspect", "--tev", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"trimtab: {tmp_path}: neither a checkpoint nor a folder that holds one\n"
    assert main(["inspect", "--tev", str(tmp_path / "absent")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_pickled_member_is_refused_with_the_line_that_converts_it(tmp_path: Path) -> None:
    store(tmp_path / "good" / "model.safetensors")
    (tmp_path / "old").mkdir()
    torch.save({NAME: torch.zeros(4, 4)}, tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="weights_only=True"):
        tev_points([tmp_path])


def test_a_table_with_nan_shows_as_such_and_breaks_nothing(tmp_path: Path) -> None:
    table = torch.zeros(4, 4)
    table[0, 0] = torch.nan
    save_file({NAME: table}, tmp_path / "step-1.safetensors")
    save_file({NAME: torch.ones(4, 4)}, tmp_path / "step-2.safetensors")
    points = tev_points([tmp_path])
    assert math.isnan(points[0].tev["tev_mean"])
    assert points[1].tev["tev_mean"] == 0
    assert "null" in tev_page(points)


def test_a_released_checkpoint_reads_as_measured_elsewhere(smollm2: Path) -> None:
    (point,) = tev_points([smollm2])
    assert point.parameters == 134_515_008
    assert point.tokens == 49_152
    np.testing.assert_allclose([point.tev["tev_mean"], point.tev["tev_std"]], [0.1334, 0.0241], atol=5e-5)


def test_a_trainers_folder_gives_its_checkpoints_and_then_itself(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for step in (1000, 500):
        store(out / f"checkpoint-{step}" / "model.safetensors")
        (out / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"\x80\x04")
    store(out / "model.safetensors")
    (out / "training_args.bin").write_bytes(b"PK\x03\x04")
    points = tev_points([out])
    assert [point.name for point in points] == ["checkpoint-500", "checkpoint-1000", "out"]


def test_files_named_model_go_by_the_name_of_their_folder(tmp_path: Path) -> None:
    paths = [store(tmp_path / f"checkpoint-{step}" / "model.safetensors") for step in (2, 1)]
    points = tev_points(paths)
    assert [(point.name, point.step) for point in points] == [("checkpoint-1", 1), ("checkpoint-2", 2)]


def test_shards_without_an_index_are_one_checkpoint(tmp_path: Path) -> None:
    store(tmp_path / "big" / "model-00001-of-00002.safetensors")
    save_file({"model.layers.1.mlp.weight": torch.zeros(4, 4)}, tmp_path / "big" / "model-00002-of-00002.safetensors")
    for path in (tmp_path, tmp_path / "big"):
        (point,) = tev_points([path])
        assert (point.name, point.parameters) == ("big", 40 * 8 + 16 * 8 + 16)


@pytest.mark.parametrize("shape", [(8,), (2, 3, 4), (0, 4)])
def test_what_is_no_table_is_refused_by_its_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    save_file({"norm": torch.ones(shape)}, tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match=r"'norm' is not a table of token vectors: its shape is \["):
        tev_points([tmp_path / "a.safetensors"], "norm")


def test_a_run_folder_is_read_from_within_under_another_name_and_never_when_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tmp_path / "run.toml"
    spec.write_text(
        "learning_rate = 0.01\n[model]\nwidth = 16\nnum_layers = 1\nnum_heads = 2\ncontext = 8\n[training]\n"
        "steps = 6\nbatch_size = 4\n[schedule]\nwarmup_steps = 2\n[evaluation]\nevaluations = 2\nnum_sequences = 4\n"
        '[probes]\nnamed = ["tev"]\nevery = 2\n'
    )
    assert main(["run", str(spec), "--out", str(tmp_path / "runs")]) == 0
    (made,) = (tmp_path / "runs").iterdir()
    copy = made.rename(tmp_path / "copy")
    assert [point.step for point in tev_points([copy])] == [1, 2, 4, 6]
    monkeypatch.chdir(copy)
    assert tev_points([Path()])[-1].name == "copy"
    (copy / "probes.jsonl").write_text("{")
    with pytest.raises(IntegrityError, match="differs"):
        tev_points([copy])
