"""Order the tests, skip those that lack a GPU, and load the fixtures where tests run."""

from __future__ import annotations

from pathlib import Path

import pytest

from arvg_trt.runtime.devices import this_device

# What takes longest begins first, so that all workers end together. Files that need the same minis
# are apart: else one worker waits for what the other makes.
LONGEST = (
    "minis/test_quantize_minis.py",
    "commands/test_cli.py",
    "minis/test_generator_recipes.py",
    "release/test_wheel.py",
    "pipeline/test_validate_mar.py",
    "pipeline/test_quantize_mar.py",
    "pipeline/test_interruption.py",
    "calibrate/test_shards.py",
    "benchmarks/test_freeze.py",
    "families/test_plugin.py",
    "families/var/test_export.py",
    "families/shared/test_raster_loop.py",
    "pipeline/test_custom_sizes.py",
    "pipeline/test_mar_calibration.py",
    "pipeline/test_validate_generator.py",
    "pipeline/test_ship.py",
    "explain/test_dry_run.py",
    "families/cosmos/test_write.py",
    "families/shared/test_cached_steps.py",
    "families/var_vqvae/test_parity.py",
    "engines/onnxruntime/test_generator.py",
    "engines/onnxruntime/test_mar.py",
    "families/gsq/test_export.py",
    "export/test_shape.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: k for k, name in enumerate(LONGEST)}
    tests = Path(__file__).parent
    problem = this_device().driver_problem
    for item in items:
        if problem is not None and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=problem))
    items.sort(key=lambda item: rank.get(str(item.path.relative_to(tests)), len(rank)))


def pytest_configure(config: pytest.Config) -> None:
    """Load the fixtures, and with them torch, where tests run: not in who only hands them out."""
    hands_out = config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput")
    if not hands_out:
        config.pluginmanager.import_plugin("arvg_trt.tests.fixtures")
