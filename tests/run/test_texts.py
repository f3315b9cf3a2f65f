"""Blocks of held-out text, the losses kept of them, what a model costs, and blocks computed twice to save memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trimtab.data import Classics, TextFiles, TokenData
from trimtab.data.classics import documents
from trimtab.data.tokenizer import encode
from trimtab.loss import held_out_loss, next_token_loss
from trimtab.models.gpt import GPT, GPTConfig
from trimtab.run.build import build
from trimtab.run.check import check_run
from trimtab.run.cost import cost_of
from trimtab.run.execute import execute
from trimtab.run.folder import IntegrityError, load_outcome, load_texts
from trimtab.run.reading import read_run
from trimtab.run.spec import EvaluationConfig, RunSpec
from trimtab.run.texts import block_losses, text_blocks

Tables = Callable[..., dict[str, Any]]


# --- where blocks lie -------------------------------------------------------------------------------------------------


def places(breaks: Sequence[int] = (), num_tokens: int = 5000, bytes_per_token: float = 1.0) -> TokenData:
    """A held-out part whose every token is its own place."""
    part = np.arange(num_tokens, dtype=np.uint16)
    return TokenData(np.zeros(10, np.uint16), {"part": part}, 65_536, bytes_per_token, breaks={"part": list(breaks)})


def starts_of(blocks: Tensor) -> list[int]:
    return blocks[:, 0, 0].tolist()


@pytest.mark.parametrize("bytes_per_token", [1.0, 3.7, math.nan])
@pytest.mark.parametrize(("context", "block_bytes"), [(8, 64), (16, 256), (64, 300), (100, 10)])
@pytest.mark.parametrize("num_tokens", [401, 5000])
def test_blocks_are_whole_stretches_of_about_the_length_asked_for_evenly_spaced(
    context: int, block_bytes: int, bytes_per_token: float, num_tokens: int
) -> None:
    config = EvaluationConfig(final_blocks=5, block_bytes=block_bytes)
    (blocks,) = text_blocks(places((), num_tokens, bytes_per_token), config, context).values()
    assert blocks.dtype == torch.int64
    per_token = 1.0 if math.isnan(bytes_per_token) else bytes_per_token
    predicted = blocks.shape[1] * context
    assert blocks.shape[1] == 1 or abs(predicted * per_token - block_bytes) <= context * per_token / 2
    for block in blocks.tolist():
        assert len({len(window) for window in block} | {context + 1}) == 1
        # Each window begins with the last token of the one before, so every token but the first is predicted once.
        stretch = [block[0][0]] + [token for window in block for token in window[1:]]
        assert stretch == list(range(stretch[0], stretch[0] + predicted + 1))
        assert all(later[0] == earlier[-1] for earlier, later in pairwise(block))
    starts = starts_of(blocks)
    assert len(starts) == min(5, (num_tokens - 1) // predicted)
    gaps = {later - earlier for earlier, later in pairwise(starts)}
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert not gaps or min(gaps) >= predicted, "a token is predicted in two blocks"
    assert starts[0] == 0
    assert len(starts) == 1 or starts[-1] + predicted == num_tokens - 1


def test_a_part_exactly_as_long_as_a_block_has_one_and_a_shorter_one_none() -> None:
    config = EvaluationConfig(final_blocks=4, block_bytes=64)
    assert starts_of(text_blocks(places((), 65), config, 8)["part"]) == [0]
    assert text_blocks(places((), 64), config, 8) == {}


def test_a_shorter_part_has_fewer_blocks() -> None:
    config = EvaluationConfig(final_blocks=100, block_bytes=64)
    parts = {"long": np.zeros(8000, np.uint8), "short": np.zeros(200, np.uint8), "tiny": np.zeros(60, np.uint8)}
    blocks = text_blocks(TokenData(np.zeros(9, np.uint8), parts, 256, 1.0), config, 8)
    assert {name: len(some) for name, some in blocks.items()} == {"long": 100, "short": 3}


@pytest.mark.parametrize(
    "breaks", [[64], [65], [1], [999, 1000, 1001], [2400, 2464, 2528], list(range(50, 5000, 50)), [4999]]
)
def test_no_block_runs_from_one_document_into_the_next(breaks: list[int]) -> None:
    config = EvaluationConfig(final_blocks=30, block_bytes=64)
    document = [sum(place >= begin for begin in breaks) for place in range(5000)]
    every = starts_of(text_blocks(places(), config, 8)["part"])
    whole = [start for start in every if document[start] == document[start + 64]]
    found = text_blocks(places(breaks), config, 8)
    assert (starts_of(found["part"]) if found else []) == whole, "another stretch was left out, or one too few"


def test_no_block_runs_into_the_next_document_after_merging_bytes_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    chance = np.random.default_rng(0)

    def document(letters: str) -> bytes:
        words = ["".join(chance.choice(list(letters), chance.integers(1, 7))) for _ in range(700)]
        return "".join(word + (" " if index % 9 else "\n") for index, word in enumerate(words, 1)).encode() + b"\n"

    texts = [document("abcd"), document("vwxyz"), document("mno")]
    begins = [len(texts[0]), len(texts[0]) + len(texts[1])]
    data = encode(b"".join(texts) * 2, {"part": b"".join(texts)}, 300, {"part": begins})
    own = [encode(b"".join(texts) * 2, {"part": text}, 300).held_out["part"] for text in texts]
    assert list(data.breaks["part"]) == [len(own[0]), len(own[0]) + len(own[1])]
    assert data.bytes_per_token > 1.2, "nothing was merged"
    shared = set.intersection(*(set(ids.tolist()) for ids in own))
    telling = [set(ids.tolist()) - shared for ids in own]
    blocks = text_blocks(data, EvaluationConfig(final_blocks=1000, block_bytes=128), 8)["part"]
    room = (len(data.held_out["part"]) - 1) // (blocks.shape[1] * 8)
    assert room - 2 == len(blocks) > 30, "one block for each of the two breaks is to be left out"
    for block in blocks:
        seen = set(block.flatten().tolist())
        assert sum(bool(seen & ids) for ids in telling) == 1
    again = encode(b"".join(texts) * 2, {"part": b"".join(texts)}, 300, {"part": begins})  # from the cache
    assert list(again.breaks["part"]) == list(data.breaks["part"])


# --- documents and files ----------------------------------------------------------------------------------------------


def test_the_classics_break_where_their_documents_begin() -> None:
    data = Classics().load()
    titles = iter(documents().values())
    for name, tokens in data.held_out.items():
        begins = [0, *data.breaks[name], len(tokens)]
        assert begins == sorted(set(begins))
        for first, end in pairwise(begins):
            assert np.array_equal(tokens[first:end], next(titles)), f"{name} at {first}"
            assert first == 0 or tokens[first - 1] == ord("\n"), "merged bytes could reach across"
    assert next(titles, None) is None


def prose(num_bytes: int, word: str) -> str:
    lines = "".join(f"{word} {number} is no {number * 7 % 13}.\n" for number in range(num_bytes // 10))
    return lines[:num_bytes]


def test_two_long_files_are_two_held_out_parts(tmp_path: Path) -> None:
    for name, word in (("first", "alpha"), ("second", "omega")):
        (tmp_path / f"{name}.txt").write_text(prose(50_000, word))
    data = TextFiles(paths=(str(tmp_path / "first.txt"), str(tmp_path / "second.txt"))).load()
    assert {name: len(part) for name, part in data.held_out.items()} == {"first": 5000, "second": 5000}
    for name, part in data.held_out.items():
        assert part.tobytes() == (tmp_path / f"{name}.txt").read_bytes()[-5000:]


def test_what_is_held_out_of_short_files_is_joined(tmp_path: Path) -> None:
    for name, size in (("long", 50_000), ("short", 8000), ("shorter", 6000)):
        (tmp_path / f"{name}.txt").write_text(prose(size, name))
    data = TextFiles(paths=tuple(str(tmp_path / f"{name}.txt") for name in ("short", "long", "shorter"))).load()
    sizes = (("long", 5000), ("short", 800), ("shorter", 600))
    ends = [(tmp_path / f"{name}.txt").read_bytes()[-size:] for name, size in sizes]
    assert {name: part.tobytes() for name, part in data.held_out.items()} == {"long": b"".join(ends)}
    assert data.breaks == {"long": [5000, 5800]}


def test_one_file_alone_is_one_part_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "novel.txt").write_text(prose(50_000, "novel"))
    assert set(TextFiles(paths=(str(tmp_path / "novel.txt"),)).load().held_out) == {"text"}


def test_no_block_runs_from_a_file_into_another_of_the_same_name(tmp_path: Path) -> None:
    for folder, letter in (("a", "x"), ("b", "y")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.txt").write_text(letter * 50_000)
    data = TextFiles(paths=tuple(str(tmp_path / folder / "same.txt") for folder in "ab")).load()
    blocks = text_blocks(data, EvaluationConfig(final_blocks=9, block_bytes=1024), 64)
    for block in (block for some in blocks.values() for block in some):
        assert len(set(block.flatten().tolist())) == 1


def test_a_tiny_file_beside_a_long_one_does_not_refuse_the_study(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(prose(50_000, "long"))
    (tmp_path / "tiny.txt").write_text(prose(300, "tiny"))
    paths = [str(tmp_path / "long.txt"), str(tmp_path / "tiny.txt")]
    settings = {"model": {"width": 16, "num_layers": 1, "num_heads": 2, "context": 64}, "learning_rate": 0.01}
    spec = read_run({**settings, "data": {"text_files": {"paths": paths}}}, "test")
    check_run(spec, spec.protocol.data.load(), "test")


# --- losses of blocks -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    made = GPT(GPTConfig(vocab_size=16, context=8, num_layers=2, num_heads=2, width=16, init_std=0.5))
    return made.train()


@pytest.fixture(scope="module")
def blocks() -> dict[str, Tensor]:
    chance = np.random.default_rng(5)
    parts = {"one": chance.integers(16, size=400, dtype=np.uint8), "two": chance.integers(16, size=90, dtype=np.uint8)}
    data = TokenData(chance.integers(16, size=50, dtype=np.uint8), parts, 16, 1.0)
    return text_blocks(data, EvaluationConfig(final_blocks=4, block_bytes=24), 8)


def test_block_losses_are_those_of_plain_loops_over_tokens(model: GPT, blocks: dict[str, Tensor]) -> None:
    found = block_losses(model, blocks, 3, torch.device("cpu"))
    assert model.training, "the model's mode was not restored"
    assert {name: len(losses) for name, losses in found.items()} == {"one": 4, "two": 3}
    model.eval()
    for name, some in blocks.items():
        for block, loss in zip(some, found[name], strict=True):
            total, count = 0.0, 0
            for window in block:
                with torch.no_grad():
                    logits = model(window[None, :-1])[0].double().tolist()
                for row, target in zip(logits, window[1:].tolist(), strict=True):
                    total += math.log(sum(math.exp(value) for value in row)) - row[target]
                    count += 1
            assert loss == pytest.approx(total / count, abs=1e-5)
    model.train()


def test_the_mean_of_all_block_losses_is_the_loss_of_all_their_tokens(model: GPT, blocks: dict[str, Tensor]) -> None:
    found = [loss for losses in block_losses(model, blocks, 64, torch.device("cpu")).values() for loss in losses]
    windows = torch.cat([some.flatten(0, 1) for some in blocks.values()])
    expected = float(held_out_loss(model, windows, 64))
    assert sum(found) / len(found) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_how_many_windows_go_at_once_changes_no_loss(model: GPT, blocks: dict[str, Tensor], batch_size: int) -> None:
    one, other = (block_losses(model, blocks, size, torch.device("cpu")) for size in (7, batch_size))
    for name in blocks:
        assert one[name] == pytest.approx(other[name], abs=1e-5)


def spec_of(tables: dict[str, Any], **changes: Any) -> RunSpec:
    raw = {key: tables[key] for key in ("model", "training", "schedule", "evaluation", "data")}
    return read_run(raw | {"learning_rate": 0.01} | changes, "test")


BLOCKS = {"final_blocks": 6, "block_bytes": 64}


def test_a_run_keeps_the_losses_of_its_blocks(tiny_tables: Tables, tmp_path: Path) -> None:
    outcome = execute(spec_of(tiny_tables(evaluation=BLOCKS)), tmp_path)
    texts = load_texts(tmp_path / outcome.run_id)
    assert {name: len(losses) for name, losses in texts.items()} == {"held_out": 6}
    assert repr(load_outcome(tmp_path / outcome.run_id)) == repr(outcome)  # a nan is no equal of itself
    losses = [loss for some in texts.values() for loss in some]
    # The circle is alike everywhere, so the trained model's loss on the blocks is that of its last evaluation.
    assert sum(losses) / len(losses) == pytest.approx(outcome.held_out[-1][1], abs=0.05)


def test_blocks_change_no_number_of_a_run(tiny_tables: Tables, tmp_path: Path) -> None:
    one = execute(spec_of(tiny_tables(evaluation=BLOCKS)), tmp_path)
    other = execute(spec_of(tiny_tables()), tmp_path)
    assert (one.held_out, one.final_loss, one.norm_ratio) == (other.held_out, other.final_loss, other.norm_ratio)


def test_a_run_without_blocks_keeps_no_texts(tiny_tables: Tables, tmp_path: Path) -> None:
    outcome = execute(spec_of(tiny_tables()), tmp_path)
    assert not (tmp_path / outcome.run_id / "texts.json").exists()
    assert load_texts(tmp_path / outcome.run_id) == {}
    assert load_outcome(tmp_path / outcome.run_id) is not None


def test_a_run_that_was_given_up_keeps_no_texts(tiny_tables: Tables, tmp_path: Path) -> None:
    outcome = execute(spec_of(tiny_tables(evaluation=BLOCKS | {"explosion_patience": 1}), learning_rate=30.0), tmp_path)
    assert outcome.stopped is not None, "the run was to explode"
    assert load_texts(tmp_path / outcome.run_id) == {}


def lower_one(path: Path) -> None:
    texts = json.loads(path.read_text())
    texts["held_out"][0] -= 0.5
    path.write_text(json.dumps(texts, indent=1) + "\n")


@pytest.mark.parametrize(
    "harm",
    [lower_one, Path.unlink, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(path.read_bytes()[:-3])],
    ids=["edited", "deleted", "emptied", "cut"],
)
def test_changed_block_losses_are_noticed(tiny_tables: Tables, tmp_path: Path, harm: Callable[[Path], Any]) -> None:
    outcome = execute(spec_of(tiny_tables(evaluation=BLOCKS)), tmp_path)
    harm(tmp_path / outcome.run_id / "texts.json")
    with pytest.raises(IntegrityError, match=outcome.run_id):
        load_outcome(tmp_path / outcome.run_id)


# --- cost -------------------------------------------------------------------------------------------------------------

D, L, T, V = 16, 3, 8, 32  # width, layers, context, vocabulary


def costed(method: Any = "baseline", **model: Any) -> Any:
    """The cost, which is the same where it is counted for a CPU and for a GPU that is not here."""
    settings = {"width": D, "num_layers": L, "num_heads": 2, "context": T, "tied": False} | model
    data = {"zipf_markov": {"vocab_size": V}}
    run = {"model": settings, "data": data, "method": method, "learning_rate": 1.0}
    here, elsewhere = (cost_of(read_run(run | {"training": {"device": device}}, "test")) for device in ("cpu", "cuda"))
    assert here == elsewhere
    return here


def flops_by_hand(more: int = 0) -> int:
    """Forward and backward, per token: every linear layer, scores and their product with values, the head."""
    linears = [(D, 3 * D), (D, D), (D, 4 * D), (4 * D, D)]
    forward = 0
    for _ in range(L):
        for num_in, num_out in linears:
            forward += 2 * num_in * num_out
        forward += 4 * T * D
    forward += 2 * D * V
    return 3 * (forward + more)


def test_parameters_are_those_counted_by_hand() -> None:
    block = (D * 3 * D + 3 * D) + (D * D + D) + (D * 4 * D + 4 * D) + (4 * D * D + D) + 2 * 2 * D
    whole = V * D + T * D + L * block + 2 * D + D * V
    assert costed().parameters == whole
    assert costed(tied=True).parameters == whole - V * D
    assert costed(positions="rotary").parameters == whole - T * D
    assert costed(bias=False).parameters == whole - L * (3 * D + D + 4 * D + D)
    assert costed().of_method == 0


@pytest.mark.parametrize("model", [{}, {"tied": True}, {"positions": "rotary"}, {"bias": False}, {"recompute": True}])
@pytest.mark.parametrize("attention", ["fused", "explicit"])
def test_flops_are_those_counted_by_hand(model: dict[str, Any], attention: str) -> None:
    assert costed(attention=attention, **model).flops_per_token == flops_by_hand()


def test_low_rank_projections_cost_as_much_as_plain_ones() -> None:
    plain, low_rank = costed(), costed("mlra")
    assert low_rank.parameters == plain.parameters
    assert low_rank.flops_per_token == plain.flops_per_token
    # Of rank 4, each of three matrices is a product of 16 x 4 and 4 x 16.
    lower = costed([{"mlra": {"rank": 4}}])
    assert lower.parameters == plain.parameters - L * 3 * (D * D - 2 * 4 * D)
    assert lower.flops_per_token == plain.flops_per_token - 3 * 2 * L * 3 * (D * D - 2 * 4 * D)


def test_a_gate_costs_its_matrix_and_no_more() -> None:
    gated = costed("gated_attention")
    assert gated.parameters == costed().parameters + L * D * D
    assert gated.flops_per_token == flops_by_hand(2 * L * D * D)


def test_what_a_method_added_is_told_apart() -> None:
    for slug in ("gated_attention", "sigma_reparam", "layer_scale", "qk_norm"):
        found = costed(slug)
        assert found.of_method == found.parameters - costed().parameters, slug


def test_a_weight_that_is_scaled_costs_no_more_a_token() -> None:
    assert costed("sigma_reparam").flops_per_token == flops_by_hand()


# --- blocks computed again in the backward pass -----------------------------------------------------------------------

METHODS = ["baseline", "sigma_reparam", "gated_attention"]


@pytest.mark.parametrize("attention", ["fused", "explicit"])
@pytest.mark.parametrize("method", METHODS)
def test_recomputed_blocks_have_bit_for_bit_the_same_gradients(
    tiny_tables: Tables, method: str, attention: str
) -> None:
    torch.set_num_threads(1)
    gradients: list[list[Tensor]] = []
    states: list[dict[str, Tensor]] = []
    for recompute in (False, True):
        tables = tiny_tables(model={"num_layers": 3, "recompute": recompute, "attention": attention})
        model = build(spec_of(tables, method=method), torch.device("cpu")).train()
        found: list[Tensor] = []
        for seed in range(3):  # what moves at every forward pass must move once, not twice
            tokens = torch.from_numpy(np.random.default_rng(seed).integers(8, size=(4, 9)))
            next_token_loss(model, tokens).backward()
            for parameter in model.parameters():
                assert parameter.grad is not None
                found.append(parameter.grad.clone())
                with torch.no_grad():
                    parameter -= 0.1 * parameter.grad
                parameter.grad = None
        gradients.append(found)
        states.append(dict(model.state_dict()))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_recomputed_blocks_are_really_computed_again(tiny_tables: Tables) -> None:
    calls: list[int] = []
    for recompute in (False, True):
        model: Any = build(spec_of(tiny_tables(model={"recompute": recompute})), torch.device("cpu")).train()
        calls.append(0)
        model.blocks[0].mlp.fc1.register_forward_hook(lambda *_: calls.__setitem__(-1, calls[-1] + 1))
        next_token_loss(model, torch.zeros(2, 9, dtype=torch.long)).backward()
        with torch.no_grad():
            next_token_loss(model, torch.zeros(2, 9, dtype=torch.long))
    assert calls == [2, 3]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_with_recomputed_blocks_comes_to_the_same(tiny_tables: Tables, tmp_path: Path, method: str) -> None:
    outcomes = []
    for recompute in (False, True):
        tables = tiny_tables(model={"num_layers": 2, "recompute": recompute}, evaluation=BLOCKS)
        outcome = execute(spec_of(tables, method=method), tmp_path)
        texts = load_texts(tmp_path / outcome.run_id)
        outcomes.append((outcome.held_out, outcome.final_loss, outcome.norm_ratio, outcome.spike, texts))
    assert outcomes[0] == outcomes[1]
