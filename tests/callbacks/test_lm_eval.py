"""The harness's view of a model: its scores are those of a loop over tokens, its continuations the likeliest."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from trimtab import GPT, GPTConfig
from trimtab.config import ConfigError

lm_eval = pytest.importorskip("lm_eval", reason="pip install 'trimtab[lm-eval]'")

from trimtab.callbacks.lm_eval import HarnessModel  # noqa: E402
from trimtab.run.execute import execute  # noqa: E402
from trimtab.run.reading import read_run  # noqa: E402
from trimtab.run.trained import load_trained  # noqa: E402

CONTEXT = 16


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(context=CONTEXT, num_layers=1, num_heads=2, width=16, init_std=0.5))
    return model.double().eval()


def request(*args: object) -> SimpleNamespace:
    return SimpleNamespace(args=args)


def log_p(model: GPT, seen: bytes, token: int) -> float:
    logits = model(torch.tensor([list(seen[-CONTEXT:])]))[0, -1].float()
    return logits.detach().log_softmax(-1)[token].item()


def test_a_continuation_that_fits_is_scored_as_by_a_loop(model: GPT) -> None:
    before, after = b"to be", b" or not"
    wanted = sum(log_p(model, before + after[:i], after[i]) for i in range(len(after)))
    ((found, greedy),) = HarnessModel(model, context=CONTEXT).loglikelihood([request("to be", " or not")])
    assert found == pytest.approx(wanted, abs=1e-4)
    assert not greedy


def test_the_likeliest_continuation_is_greedy_and_is_what_is_generated(model: GPT) -> None:
    made = list(b"to be")
    for _ in range(4):
        made.append(int(model(torch.tensor([made]))[0, -1].argmax()))
    harness = HarnessModel(model, context=CONTEXT, encode=lambda text: [ord(c) for c in text], decode=_latin)
    after = _latin(made[5:])
    ((_, greedy),) = harness.loglikelihood([request("to be", after)])
    assert greedy
    assert harness.generate_until([request("to be", {"max_gen_toks": 4})]) == [after]
    assert harness.generate_until([request("to be", {"max_gen_toks": 4, "until": [after[2]]})]) == [
        after[: after.index(after[2])]
    ]


def _latin(tokens: list[int]) -> str:
    return "".join(chr(token) for token in tokens)


def test_a_text_longer_than_the_context_is_scored_window_by_window_each_token_once(model: GPT) -> None:
    text = bytes(i % 90 + 33 for i in range(3 * CONTEXT + 5))
    shifted = b"\n" + text
    wanted = sum(log_p(model, shifted[i - i % CONTEXT : i + 1], text[i]) for i in range(len(text)))
    (found,) = HarnessModel(model, context=CONTEXT).loglikelihood_rolling([request(text.decode())])
    assert found == pytest.approx(wanted, rel=1e-5)


def test_a_continuation_longer_than_the_context_scores_every_token(model: GPT) -> None:
    after = "x" * (2 * CONTEXT + 3)
    ((found, _),) = HarnessModel(model, context=CONTEXT).loglikelihood([request("a", after)])
    assert math.isfinite(found)
    assert found < -len(after) * 0.01


def test_the_model_of_a_run_with_weights_comes_back_with_its_method(tmp_path: Path) -> None:
    raw = {
        "method": "mlra",
        "learning_rate": 1e-3,
        "model": {"width": 16, "num_layers": 1, "num_heads": 2, "context": 16},
        "training": {"steps": 3, "batch_size": 2},
        "schedule": {"warmup_steps": 1},
        "evaluation": {"evaluations": 1, "final_evaluations": 1, "num_sequences": 8},
    }
    outcome = execute(read_run(raw, "test"), tmp_path, keep_weights=True)
    model, spec = load_trained(tmp_path / outcome.run_id)
    assert spec.method[0].slug() == "mlra"
    (score,) = HarnessModel(model, context=16).loglikelihood_rolling(
        [request("It is a truth universally acknowledged")]
    )
    assert -400 < score < 0
    with pytest.raises(ConfigError, match="not the folder of a finished run"):
        load_trained(tmp_path)
