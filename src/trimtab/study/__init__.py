"""Many runs, one question: how far can the learning rate be pushed before training breaks, per arm."""

from __future__ import annotations

from trimtab.study.study import Study, load_study

__all__ = ["Study", "load_study"]
