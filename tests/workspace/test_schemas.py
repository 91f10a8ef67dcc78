"""Files of other kinds and versions are refused by the name that they give themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from arvg_trt.engines.bundle.kit import Kit
from arvg_trt.errors import WorkspaceError
from arvg_trt.families.mar.spec import MarSpec
from arvg_trt.families.rar.spec import RarSpec
from arvg_trt.families.var.spec import VarSpec
from arvg_trt.graph.sites import SiteMap
from arvg_trt.numerics.scheme import Plan
from arvg_trt.quantize.search.facts import Sensitivity
from arvg_trt.recipe.recipe import Recipe
from arvg_trt.validate.report.schema import Report
from arvg_trt.workspace.files import decode_json
from arvg_trt.workspace.manifest import Manifest
from arvg_trt.workspace.schemas import problem_in, schema_of, schema_problem

KINDS = {
    Plan: "plan/v1",
    Report: "report/v2",
    SiteMap: "sites/v2",
    Manifest: "manifest/v1",
    Kit: "kit/v1",
    Recipe: "recipe/v1",
    Sensitivity: "sensitivity/v1",
    VarSpec: "generator/v1",
    RarSpec: "generator/v1",
    MarSpec: "generator/v1",
}


def refused(tmp_path: Path, kind: Any, schema: object) -> str:
    """Return what is said of a file whose other fields no decoder of this version knows."""
    path = tmp_path / "file.json"
    path.write_bytes(msgspec.json.encode({"schema": schema, "new": [1, {"of": "another form"}]}))
    with pytest.raises(WorkspaceError) as caught:
        decode_json(path, kind, do="make it again")
    assert caught.value.where == str(path)
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize(("kind", "reads"), KINDS.items())
def test_every_artefact_of_a_newer_version_says_so(kind: Any, reads: str, tmp_path: Path) -> None:
    assert schema_of(kind) == f"arvg-trt/{reads}"
    newer = f"{reads.partition('/')[0]}/v9"
    said = refused(tmp_path, kind, f"arvg-trt/{newer}")
    assert said == f"{newer} is newer than this arvg-trt reads, {reads} (upgrade arvg-trt)"


def test_an_older_version_another_kind_and_no_schema_are_told_apart(tmp_path: Path) -> None:
    older = refused(tmp_path, SiteMap, "arvg-trt/sites/v1")
    assert older == "sites/v1 is older than this arvg-trt reads, sites/v2 (make it again)"
    other = refused(tmp_path, Plan, "arvg-trt/report/v1")
    assert other == "is report/v1, where plan/v1 is read (name a plan)"
    for odd in ("plan", 7, ["arvg-trt/plan/v1"], "arvg-trt/plan/v1\n"):
        said = refused(tmp_path, Plan, odd)
        assert said.startswith("names the schema ") and "plan/v1 is read" in said


def test_the_schema_that_is_read_is_no_problem_and_a_damaged_file_is_the_decoder_s() -> None:
    assert schema_problem("arvg-trt/plan/v1", "arvg-trt/plan/v1") is None
    for data in (b"", b"[]", b"{}", b"\xff", b'{"schema": null}'):
        assert problem_in(data, Plan) is None
    assert schema_of(dict[str, Any]) is None and schema_of(int) is None
