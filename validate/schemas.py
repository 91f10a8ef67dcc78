"""Publish JSON schemas of the files that arvg-trt writes, made from the structs that read them."""

from __future__ import annotations

from typing import Any

import msgspec

from ..errors import RecipeError, nearest
from ..graph.sites import SiteMap
from ..numerics.scheme import Plan
from ..recipe.reference import json_schema as recipe_schema
from ..workspace.manifest import Manifest
from .report.schema import Report

DIALECT = "https://json-schema.org/draft/2020-12/schema"
FILES: dict[str, tuple[type[msgspec.Struct], str]] = {
    "report": (Report, "report.json of `arvg-trt validate`"),
    "plan": (Plan, "plan.json of `arvg-trt quantize`"),
    "sites": (SiteMap, "sites.json of `arvg-trt export`"),
    "manifest": (Manifest, "manifest.json of every stage"),
}
NAMES = (*FILES, "recipe")


def published_schema(name: str) -> dict[str, Any]:
    """Return the JSON schema of a file by its name in NAMES.

    Raises:
        RecipeError: there is no file of that name.
    """
    if name == "recipe":
        return recipe_schema()
    if name not in FILES:
        raise RecipeError(f"there is no schema {name!r}", do=f"use {nearest(name, NAMES)}")
    struct, title = FILES[name]
    return {"$schema": DIALECT, "title": title, **msgspec.json.schema(struct)}
