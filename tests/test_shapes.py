"""The shapes that signatures promise are checked, in a process of their own: decorated code is not what ships."""

from __future__ import annotations

import subprocess
import sys

SETUP = """
from jaxtyping import install_import_hook
checked = ["trimtab.models.gpt", "trimtab.loop", "trimtab.loss", "trimtab.data.batches"]
with install_import_hook(checked, "beartype.beartype"):
    import trimtab.data.batches, trimtab.loop, trimtab.models.gpt
import numpy as np, torch
from trimtab.data.batches import held_out_batch, training_batch
from trimtab.loop import Evaluation, train
from trimtab.loss import held_out_loss, next_token_loss
from trimtab.models.gpt import GPT, GPTConfig
model = GPT(GPTConfig(width=16, num_layers=1, num_heads=2, context=8, positions="rotary"))
tokens = np.arange(500, dtype=np.uint16) % 256
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", SETUP + code], capture_output=True, text=True)


def test_every_annotated_function_keeps_its_promise():
    done = run("""
batch = training_batch(tokens, seed=0, step=0, batch_size=3, context=8)
assert batch.shape == (3, 9)
held_out = held_out_batch({"text": tokens}, num_sequences=4, context=8)
assert model(batch[:, :-1]).shape == (3, 8, 256)
assert next_token_loss(model, batch).shape == ()
held_out_loss(model, held_out, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
evaluation = Evaluation(loss=lambda: held_out_loss(model, held_out, 2), after=(0, 1))
records = list(train(model, [(batch,)], optimizer, evaluation=evaluation))
assert [record.step for record in records] == [0, 1]
""")
    assert done.returncode == 0, done.stderr


def test_a_wrong_shape_or_type_is_caught():
    calls = ("model(torch.zeros(8, dtype=torch.long))", "model(torch.zeros(1, 8))", "next_token_loss(model, 3)")
    attempts = [
        f"\ntry:\n    {call}\nexcept Exception as error:\n    assert 'jaxtyp' in type(error).__module__, error\n"
        f"else:\n    raise SystemExit({call!r} + ' was not caught')"
        for call in calls
    ]
    done = run("".join(attempts))
    assert done.returncode == 0, done.stderr
