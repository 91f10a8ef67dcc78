"""Define the command line: the group of all commands, and `main`."""

from __future__ import annotations

import signal
import sys

import click

from .commands.baseline import baseline
from .commands.build import build
from .commands.bundle import bundle
from .commands.ci import ci
from .commands.diagnose import diagnose
from .commands.evaluate import evaluate, network
from .commands.images import decode, encode, generate
from .commands.info import analyze, doctor, inspect, models, targets
from .commands.predict import predict, probe
from .commands.recipes import recipes
from .commands.reports import compare, index, schema
from .commands.run import run
from .commands.search import search
from .commands.ship import cache, keygen, sign, unpack, verify
from .commands.stages import calibrate, export, quantize, validate
from .commands.support.errors import Commands, debug_option
from .commands.sweep import recommend, sweep
from .commands.why import why
from .workspace.stage import tool_version


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    params=[debug_option()],
)
@click.version_option(tool_version(), prog_name="arvg-trt")
def cli() -> None:
    """Image generators and tokenizers, from checkpoints to quantized engines for NVIDIA edge GPUs.

    Begin with one of these:

    \b
    arvg-trt run cosmos-mini-int8   every stage, with a small model that ships
    arvg-trt models                 the models known by name, and their licences
    arvg-trt analyze model.onnx     what of your own ONNX model can be quantized
    arvg-trt generate out/ws --labels 3 -o images/
    arvg-trt doctor                 what this machine can build and run
    """


cli.add_section("From a checkpoint to a report", export, calibrate, quantize, build, validate, run)
cli.add_section("Find out what to do", predict, probe, search, diagnose, sweep, recommend)
cli.add_section("Use a model", generate, encode, decode, evaluate)
cli.add_section("Ship", bundle, keygen, sign, verify, unpack, cache)
cli.add_section("Reports and CI", compare, baseline, index, ci, schema, network)
cli.add_section("Look", models, recipes, targets, analyze, inspect, why, doctor)


def main() -> None:
    """Run a command; an unforeseen error ends here as one line."""
    for number in (signal.SIGINT, signal.SIGTERM):  # CI systems cancel with the second
        signal.signal(number, cli.interrupt)
    try:
        cli(prog_name="arvg-trt")
    except Exception as error:
        sys.exit(cli.report_internal(error))
