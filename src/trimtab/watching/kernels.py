"""The kernels of ``kernels.c`` for tensors on a CPU, compiled once a process by the C compiler of the machine.

One call from Python reads a tensor once. After a matrix product the caches are cold: each operation of torch, and each
call of ``torch.compile``, then takes a tenth of a millisecond or more before it reads the first entry.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-fno-math-errno", "-shared", "-fPIC")
OPTIONAL = (  # tried from the first line on; not every compiler knows every flag
    ("-march=native", "-fopenmp"),
    ("-march=native",),
    ("-fopenmp",),
    (),
)
POWERS_OF = (torch.float32, torch.bfloat16)  # dtypes that ``powers`` reads; ``adam_squares`` reads the first
NUM_POWERS = 5
NUM_ADAM = 2
LEAST_A_THREAD = 1 << 15  # entries


class CompilerError(RuntimeError):
    """No C compiler, or one that refuses the kernels."""


def readable(*tensors: Tensor, dtypes: Sequence[torch.dtype] = (torch.float32,)) -> bool:
    """Whether a kernel can read all of these: plain and contiguous, on a CPU, of one of the dtypes."""
    return all(
        type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu" and x.dtype in dtypes and x.is_contiguous()
        for x in tensors
    )


def powers(x: Tensor, *, high: bool) -> list[float]:
    """Five numbers: the sums of the first, second, third and fourth power of the entries, and the largest magnitude.

    Args:
        x: a tensor of any shape that is ``readable`` with the dtypes ``POWERS_OF``.
        high: whether to add up third and fourth powers; if not, those sums are 0.

    Raises:
        CompilerError: if the kernels cannot be compiled here.
    """
    threads = _threads(x.numel())
    out = (ctypes.c_double * (NUM_POWERS * threads))()
    load().powers(x.data_ptr(), x.dtype is torch.bfloat16, high, x.numel(), threads, out)
    return [*(sum(out[power::NUM_POWERS]) for power in range(NUM_POWERS - 1)), max(out[NUM_POWERS - 1 :: NUM_POWERS])]


def adam_squares(
    weight: Tensor, first: Tensor, second: Tensor, *, root: float, eps: float, share: float
) -> tuple[float, float]:
    """The sums of squares of ``first / (sqrt(second) * root + eps) + share * weight`` and of the weight.

    Args:
        weight: of n entries and any shape; this and the moments must be ``readable``.
        first: first moment, of n entries.
        second: second moment, of n entries.
        root: factor of the square root.
        eps: added to the square root.
        share: of the weight in a step.

    Raises:
        CompilerError: if the kernels cannot be compiled here.
    """
    threads = _threads(weight.numel())
    out = (ctypes.c_double * (NUM_ADAM * threads))()
    pointers = (weight.data_ptr(), first.data_ptr(), second.data_ptr())
    load().adam(*pointers, root, eps, share, weight.numel(), threads, out)
    return sum(out[::NUM_ADAM]), sum(out[1::NUM_ADAM])


@functools.cache
def load() -> ctypes.CDLL:
    """The compiled kernels.

    Raises:
        CompilerError: if they cannot be compiled here.
    """
    with tempfile.TemporaryDirectory(prefix="trimtab-", ignore_cleanup_errors=True) as folder:
        kernels = ctypes.CDLL(str(_compiled(Path(folder) / "kernels.so")))
    pointer, whole, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
    kernels.powers.argtypes = [pointer, whole, whole, ctypes.c_int64, whole, pointer]
    kernels.adam.argtypes = [pointer, pointer, pointer, real, real, real, ctypes.c_int64, whole, pointer]
    kernels.powers.restype = kernels.adam.restype = None
    return kernels


def _compiled(target: Path) -> Path:
    """The library, compiled with as many of the optional flags as the compiler knows."""
    named = os.environ.get("CC")
    compiler = shlex.split(named) if named else [path for path in map(shutil.which, ("cc", "gcc", "clang")) if path][:1]
    if not compiler:
        raise CompilerError("no C compiler was found; install one or set CC")
    complaint = ""
    for flags in OPTIONAL:
        command = [*compiler, *FLAGS, *flags, "-o", str(target), str(SOURCE), "-lm"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise CompilerError(f"{compiler[0]}: {error.strerror}") from error
        if done.returncode == 0:
            return target
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        complaint = next((line for line in lines if "error" in line), lines[-1])
    raise CompilerError(f"{shlex.join(compiler)}: {complaint}")


def _threads(entries: int) -> int:
    return max(1, min(torch.get_num_threads(), entries // LEAST_A_THREAD))
