from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trimtab import Study
from trimtab.report import report_of
from trimtab.report.output import json_text
from trimtab.run.spec import UserCode
from trimtab.study.kind import Findings, read_any_study


@pytest.fixture(scope="session")
def tiny(tiny_tables: Callable[..., dict[str, Any]]):
    """The tiny study as an object, with changes: ``tiny(build_model=f, training={"steps": 30})``."""

    def make(*, build_model: Any = None, build_optimizer: Any = None, **changes: Any) -> Study:
        tables = tiny_tables(**changes)
        return Study.of(read_any_study(tables, "tiny", UserCode(model=build_model, optimizer=build_optimizer)))

    return make


@pytest.fixture(scope="session")
def finished_folder(tiny: Callable[..., Study], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny study; copy it before use."""
    folder = tmp_path_factory.mktemp("finished") / "study"
    tiny().run(folder, workers=0)
    return folder


@pytest.fixture
def finished(finished_folder: Path, tmp_path: Path) -> Path:
    """A finished tiny study of one's own."""
    return Path(shutil.copytree(finished_folder, tmp_path / "finished"))


@pytest.fixture
def user_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module of a user, importable here and in workers."""
    import importlib

    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    marks = tmp_path / "marks"
    marks.mkdir()
    monkeypatch.setenv("TRIMTAB_TEST_MARKS", str(marks))
    return importlib.import_module("user_code")


@pytest.fixture(scope="session")
def text_of() -> Callable[[Findings], str]:
    """``results.json`` without what may differ between equal studies."""

    def text(findings: Findings) -> str:
        results = dict(report_of(findings).results)
        del results["provenance"]
        return json_text(results)

    return text


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, tuple[int, str]]]:
    """Everything below a folder: path, time of change, hash."""

    def listing(folder: Path) -> dict[str, tuple[int, str]]:
        return {
            str(path.relative_to(folder)): (
                path.lstat().st_mtime_ns,
                hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
            )
            for path in sorted(folder.rglob("*"))
        }

    return listing


@pytest.fixture(scope="session")
def ray_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ray once for all tests of this process, since it starts in seconds and keeps the first token that it reads."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        # At Ray's own niceness, 15, a worker needs a minute to import torch while another process tests.
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _system_config={"worker_niceness": 0},
        )
        yield
        ray.shutdown()
