"""A tiny PAR's checkpoint through the stages, and checkpoints that do not make a PAR."""

from __future__ import annotations

from ..export.par_models import TinyPar


def test_x(tiny_par: TinyPar) -> None:
    print(open(tiny_par.folder / "manifest.json").read())
    assert 0
