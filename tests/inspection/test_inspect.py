"""``trimtab inspect``: right numbers, nothing read that is not needed, pickles refused, damage named."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from trimtab import GPT, GPTConfig
from trimtab.cli import main
from trimtab.config import ConfigError
from trimtab.inspection.checkpoints import Checkpoint, open_checkpoint
from trimtab.inspection.show import sparkline, trajectory
from trimtab.inspection.spectrum import spectral_norm
from trimtab.inspection.summary import summarise
from trimtab.inspection.variability import variability
from trimtab.probes.token_embedding_variability import row_deviations
from trimtab.probes.token_embedding_variability import summary as probe_summary
from trimtab.run.folder import IntegrityError


def weights(seed: int = 0, layers: int = 6) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return dict(GPT(GPTConfig(vocab_size=48, width=16, num_layers=layers, num_heads=2, tied=False)).state_dict())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(weights(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_the_spread_of_token_vectors_is_that_of_its_two_line_definition(file: Path) -> None:
    tables = {table.name: table for table in summarise(open_checkpoint(file)).tables}
    assert tables.keys() == {"token_embedding.weight", "head.weight"}
    for name, table in tables.items():
        rows = weights()[name].double()
        tev = ((rows - rows.mean(1, keepdim=True)) ** 2).mean(1).sqrt()
        assert table.tokens == 48
        assert table.tev["tev_mean"] == pytest.approx(tev.mean().item(), rel=1e-5)
        assert table.tev["tev_std"] == pytest.approx(tev.std(correction=0).item(), rel=1e-4)
        for q in (0.05, 0.5, 0.95):
            assert table.tev[f"tev_q{int(100 * q):02d}"] == pytest.approx(tev.quantile(q).item(), rel=1e-5)
        assert table.row_norms[1] == pytest.approx(rows.norm(dim=1).mean().item(), rel=1e-5)


def test_size_and_spectrum_of_every_matrix_are_right(file: Path) -> None:
    found = {matrix.name: matrix for matrix in summarise(open_checkpoint(file)).matrices}
    stored = {n: w for n, w in weights().items() if w.ndim == 2 and n not in ("token_embedding.weight", "head.weight")}
    assert found.keys() == stored.keys()
    for name, weight in stored.items():
        top = torch.linalg.svdvals(weight.double())[0].item()
        assert found[name].rms == pytest.approx(weight.double().square().mean().sqrt().item(), rel=1e-5)
        assert found[name].spectral_norm == pytest.approx(top, rel=2e-2)
        assert found[name].spectral_norm <= top * (1 + 1e-5)
        rank = weight.double().square().sum().item() / top**2
        assert found[name].stable_rank == pytest.approx(rank, rel=5e-2)


@pytest.mark.parametrize("shape", [(40, 200), (200, 40), (3, 3)])
def test_a_clear_leading_direction_is_found_to_a_thousandth(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(2)
    matrix = torch.randn(shape, generator=generator) + 3 * torch.outer(torch.ones(shape[0]), torch.ones(shape[1]))
    assert spectral_norm(matrix.numpy()) == pytest.approx(torch.linalg.matrix_norm(matrix, 2).item(), rel=1e-3)


def test_a_single_direction_above_many_equal_ones_is_not_missed() -> None:
    for size in (2, 10, 600):
        spike = np.eye(size, dtype=np.float32)
        spike[0, 0] = 2
        assert spectral_norm(spike) == pytest.approx(2, rel=1e-6)
    assert spectral_norm(np.zeros((3, 5), np.float32)) == 0


@pytest.mark.parametrize("scale", [1e-30, 1e20, 1e36])
def test_weights_whose_squares_leave_the_range_of_float32_have_a_spectrum(scale: float) -> None:
    matrix = np.random.default_rng(1).standard_normal((8, 12)).astype(np.float32)
    scaled = matrix * np.float32(scale)
    assert spectral_norm(scaled) == pytest.approx(scale * np.linalg.norm(matrix, 2), rel=5e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.float8_e4m3fn])
def test_every_stored_type_reads_as_torch_reads_it(tmp_path: Path, dtype: torch.dtype) -> None:
    stored = {name: (3 * weight).to(dtype) for name, weight in weights().items()}
    save_file(stored, tmp_path / "typed.safetensors", metadata={"format": "pt"})
    checkpoint = open_checkpoint(tmp_path / "typed.safetensors")
    assert checkpoint.shapes == {name: tuple(weight.shape) for name, weight in stored.items()}
    for name, weight in stored.items():
        assert checkpoint.read(name).dtype == np.float32
        np.testing.assert_array_equal(checkpoint.read(name), weight.float().numpy())


def test_the_spread_is_that_of_the_probe() -> None:
    table = torch.randn(3000, 24, generator=torch.Generator().manual_seed(4)) + 5
    probed = {key: value.item() for key, value in probe_summary(row_deviations(table)).items()}
    assert variability(table.numpy()) == pytest.approx(probed, rel=1e-5)


def test_weights_are_inspected_without_torch(tmp_path: Path) -> None:
    save_file({name: weight.bfloat16() for name, weight in weights().items()}, tmp_path / "model.safetensors")
    code = "import sys; from trimtab.cli import main; sys.exit(main(sys.argv[1:]) or 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", tmp_path / "model.safetensors"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "blocks.*.mlp.fc1.weight" in done.stdout


def test_only_the_matrices_are_read_and_each_once() -> None:
    read: list[str] = []
    stored = weights()

    def reading(name: str) -> NDArray[np.float32]:
        read.append(name)
        return stored[name].numpy()

    summarise(Checkpoint("counted", {name: tuple(w.shape) for name, w in stored.items()}, reading))
    assert sorted(read) == sorted(name for name, w in stored.items() if w.ndim == 2)


def test_a_layer_unlike_the_others_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = weights()
    odd["blocks.4.mlp.fc1.weight"] = odd["blocks.4.mlp.fc1.weight"] * 3
    save_file(odd, tmp_path / "odd.safetensors")
    summary = summarise(open_checkpoint(tmp_path / "odd.safetensors"))
    assert {(one.name, one.statistic) for one in summary.outliers} == {
        ("blocks.4.mlp.fc1.weight", "rms"),
        ("blocks.4.mlp.fc1.weight", "spectral_norm"),
    }
    assert summary.outliers[0].ratio == pytest.approx(3, rel=0.05)
    assert main(["inspect", str(tmp_path / "odd.safetensors")]) == 0
    assert "outlier: blocks.4.mlp.fc1.weight, rms 3.0" in capsys.readouterr().out


def test_entries_that_are_not_finite_are_counted_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = weights()
    broken["blocks.2.attn.proj.weight"][1, 2] = math.nan
    save_file(broken, tmp_path / "broken.safetensors")
    assert main(["inspect", str(tmp_path / "broken.safetensors"), "--json", str(tmp_path / "out.json")]) == 0
    assert "not finite: blocks.2.attn.proj.weight, 1 entries" in capsys.readouterr().out
    (stored,) = json.loads((tmp_path / "out.json").read_text())
    (matrix,) = (m for m in stored["matrices"] if m["name"] == "blocks.2.attn.proj.weight")
    assert matrix["spectral_norm"] is None


def test_a_sharded_folder_gives_what_the_single_file_gives(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    folder.mkdir()
    names = list(weights())
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for part, mine in parts.items():
        save_file({name: weights()[name] for name in mine}, folder / part)
    index = {"weight_map": {name: part for part, mine in parts.items() for name in mine}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    whole, sharded = summarise(open_checkpoint(file)), summarise(open_checkpoint(folder))
    for kind in ("tables", "matrices"):
        mine, other = ({one.name: one for one in getattr(summary, kind)} for summary in (sharded, whole))
        assert mine == other
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(IntegrityError, match=r"names 'model-2\.safetensors', which is not there"):
        open_checkpoint(folder)


def test_a_series_gives_a_trajectory_and_a_page_with_charts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for step in range(3):
        scaled = {name: weight * (1 + step) for name, weight in weights().items()}
        files.append(tmp_path / f"step-{step}.safetensors")
        save_file(scaled, files[-1])
    course = trajectory([summarise(open_checkpoint(one)) for one in files])
    tev = course["TEV mean, token_embedding.weight"]
    assert [value / tev[0] for value in tev] == pytest.approx([1, 2, 3])
    assert main(["inspect", *map(str, files), "--html", str(tmp_path / "page.html")]) == 0
    assert "3.000x" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert page.count('class="chart-data"') == len(course)
    assert "http-equiv" in page
    assert sparkline([1, 2, 3]) == "▁▄█"
    assert sparkline([1, math.nan]) == "▁."


def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "it-ran",))

    torch.save(weights(), tmp_path / "model.pt")
    (tmp_path / "raw.safetensors").write_bytes(pickle.dumps(Bomb()))
    with zipfile.ZipFile(tmp_path / "zipped.safetensors", "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Bomb()))
    folder = tmp_path / "folder"
    folder.mkdir()
    torch.save(weights(), folder / "pytorch_model.bin")
    for path in (tmp_path / "model.pt", tmp_path / "raw.safetensors", tmp_path / "zipped.safetensors", folder):
        assert main(["inspect", str(path)]) == 2, path
        assert "weights_only=True" in capsys.readouterr().err
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("start", [b"\x80", b"PK"])
def test_a_header_whose_length_begins_like_a_pickle_is_no_pickle(tmp_path: Path, start: bytes) -> None:
    save_file({"w": torch.ones(2, 2)}, tmp_path / "plain.safetensors")
    plain = (tmp_path / "plain.safetensors").read_bytes()
    size = int.from_bytes(plain[:8], "little")
    longer = next(n for n in range(size, 1 << 17) if n.to_bytes(8, "little").startswith(start))
    padded = longer.to_bytes(8, "little") + plain[8 : 8 + size].ljust(longer) + plain[8 + size :]
    (tmp_path / "padded.safetensors").write_bytes(padded)
    assert open_checkpoint(tmp_path / "padded.safetensors").read("w").tolist() == [[1, 1], [1, 1]]


def test_damage_is_told_apart_from_a_wrong_path(tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:-9])
    assert main(["inspect", str(tmp_path / "cut.safetensors")]) == 30
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    assert main(["inspect", str(tmp_path / "cut.gguf")]) == 30
    assert main(["inspect", str(tmp_path / "none.safetensors")]) == 2
    assert main(["inspect", str(tmp_path)]) == 30
    (tmp_path / "empty").mkdir()
    assert main(["inspect", str(tmp_path / "empty")]) == 2
    with pytest.raises(ConfigError, match="has no tensor 'nope'"):
        summarise(open_checkpoint(file), "nope")
    assert "Traceback" not in capsys.readouterr().err


def test_smollm2_has_the_spread_that_was_measured_on_it(smollm2: Path) -> None:
    (file,) = smollm2.rglob("*.gguf")
    summary = summarise(open_checkpoint(file))
    (table,) = summary.tables
    assert table.tokens == 49_152
    assert table.tev["tev_mean"] == pytest.approx(0.1334, abs=2e-4)
    assert table.tev["tev_std"] == pytest.approx(0.0241, abs=2e-4)
    assert summary.parameters == 134_515_008
    assert len(summary.matrices) == 30 * 7
    matrix = open_checkpoint(file).read("blk.3.attn_q.weight")
    mine = next(one for one in summary.matrices if one.name == "blk.3.attn_q.weight")
    assert mine.spectral_norm == pytest.approx(np.linalg.norm(matrix, 2), rel=5e-3)


def test_weights_name_their_methods_and_marks_are_no_tensors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from trimtab import host_for, methods

    model = GPT(GPTConfig(vocab_size=32, context=8, num_layers=1, num_heads=2, width=16))
    plain = set(model.state_dict())
    methods.soft_cap.install(host_for(model))
    save_file({key: value.clone() for key, value in model.state_dict().items()}, tmp_path / "w.safetensors")
    checkpoint = open_checkpoint(tmp_path / "w.safetensors")
    assert set(checkpoint.shapes) == plain
    assert main(["inspect", str(tmp_path / "w.safetensors")]) == 0
    assert "w.safetensors with soft_cap" in capsys.readouterr().out
