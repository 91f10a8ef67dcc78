"""Recipes for other models than they name, and what lists say of presets."""

from __future__ import annotations

from typing import Literal

import msgspec

from ..errors import ExportError, RecipeError
from ..families.base import Variant
from ..families.variants import (
    IN_MINIS,
    MINIS,
    all_variants,
    checkpoint_text,
    find_model,
    shipped_folder,
)
from ..recipe.base import with_changes
from ..recipe.file import encode_recipe, find_recipe, load_recipe, preset_names
from ..recipe.recipe import Recipe
from ..recipe.summary import backends_of, formats_of, summarize

Weights = Literal["installed", "missing", "published"]


class PresetRow(msgspec.Struct, frozen=True, kw_only=True):
    """Describe a preset: its family, the model it names, and what it does in one line.

    ``weights`` says of that model's whether they are here, lack a package, or are fetched when it
    runs; ``checkpoint`` where they are.
    """

    name: str
    family: str
    model: str
    weights: Weights
    checkpoint: str
    quantize_method: str
    formats: str
    backends: str
    description: str


def preset_rows() -> list[PresetRow]:
    """Return what lists say of each preset, in order."""
    rows = []
    for name in preset_names():
        recipe = load_recipe(name)
        entry = find_model(recipe.model)
        rows.append(
            PresetRow(
                name=name,
                family=entry.family,
                model=recipe.model,
                weights=weights_of(entry),
                checkpoint=checkpoint_text(entry),
                quantize_method=recipe.quantize.quantize_method,
                formats=formats_of(recipe.quantize),
                backends=backends_of(recipe),
                description=summarize(recipe),
            )
        )
    return rows


def weights_of(entry: Variant) -> Weights:
    """Return whether a model's weights are installed, missing, or published and fetched."""
    if shipped_folder(entry.name) is not None:
        return "installed"
    return "published" if entry.published else "missing"


def require_weights(name: str, recipe: Recipe) -> None:
    """Check that a recipe which gives no checkpoint names a model whose weights can be had.

    Raises:
        ExportError: they are of a package that is not installed; names another model of the family.
    """
    entry = find_model(recipe.model)
    if recipe.checkpoint is not None or entry.name not in IN_MINIS or shipped_folder(entry.name):
        return
    other = next(v for v in all_variants() if v.family == entry.family and v.hub)
    raise ExportError(
        f"the weights of {entry.name} are not installed",
        where=name,
        do=f"pip install {MINIS}, or run it with another model of the family, say "
        f"--model {other.name} --checkpoint {other.hub}",
    )


def adapt_recipe(
    name: str,
    recipe: Recipe,
    model: str | None = None,
    checkpoint: str | None = None,
    workspace: str | None = None,
) -> Recipe:
    """Return the recipe `name` for any model of its family, in the workspace out/MODEL.

    The checkpoint of a recipe is its own model's, and so are its gates, which hold what was
    measured there: neither goes along to another model.

    Raises:
        RecipeError: the model is of another family; names the presets of that one. Or the recipe
            has a plan, which is of its own model's sites.
        ExportError: there is no such model.
    """
    if model is not None and model != recipe.model:
        require_family(name, recipe, model)
        if recipe.quantize.plan is not None:
            raise RecipeError(
                f"its plan is of the sites of {recipe.model}, and --model names another",
                where=name,
                do="leave plan out, or make one of that model's",
            )
        recipe = msgspec.structs.replace(
            recipe,
            model=model,
            checkpoint=None,
            workspace=f"out/{model}",
            validate=msgspec.structs.replace(recipe.validate, gates=()),
        )
    return with_changes(recipe, checkpoint=checkpoint, workspace=workspace)


def require_family(name: str, recipe: Recipe, model: str) -> None:
    """Raise RecipeError for a model of another family than the recipe's."""
    wanted, found = find_model(recipe.model).family, find_model(model).family
    if wanted == found:
        return
    fitting = [row.name for row in preset_rows() if row.family == found]
    do = f"presets of {found}: {', '.join(fitting)}" if fitting else f"no preset is of {found}"
    raise RecipeError(f"is for {wanted} models, and {model} is a {found} model", where=name, do=do)


def recipe_text(
    name: str,
    model: str | None = None,
    checkpoint: str | None = None,
    workspace: str | None = None,
) -> str:
    """Return a recipe as TOML: as it was written, or adapted to another model.

    Raises:
        RecipeError: there is none, or it is of another family than the model.
    """
    if model is None and checkpoint is None and workspace is None:
        return find_recipe(name).read_text(encoding="utf-8")
    recipe = adapt_recipe(name, load_recipe(name), model, checkpoint, workspace)
    return f"# {name} for {recipe.model}: {summarize(recipe)}.\n{encode_recipe(recipe)}"
