"""Connect models of Triton Inference Server to ensembles, which it runs as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .text_proto import Message, map_entries, text_proto
from .triton_config import Model, Tensor, ends_message


@dataclass(frozen=True, slots=True)
class Step:
    """Run a model in an ensemble: its inputs and outputs by name to the ensemble's tensors."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]

    def message(self) -> Message:
        return {
            "model_name": self.model,
            "model_version": -1,
            "input_map": map_entries(self.inputs),
            "output_map": map_entries(self.outputs),
        }


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Describe models that the server runs one after the other as one."""

    name: str
    max_batch: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    steps: tuple[Step, ...]

    def config(self) -> str:
        """Return the text of its `config.pbtxt`; an ensemble has no instances of its own."""
        message = {
            "name": self.name,
            "platform": "ensemble",
            **ends_message(self.max_batch, self.inputs, self.outputs),
            "ensemble_scheduling": {"step": tuple(step.message() for step in self.steps)},
        }
        return text_proto(message)


def chain(name: str, models: Sequence[Model]) -> Ensemble:
    """Return the ensemble of models in the order that they run.

    An output feeds the inputs of its name in later models. What none of them reads is an output of
    the ensemble, as are all of the last model; two tensors of one name get their graph's before it.
    """
    max_batch = min(model.max_batch for model in models)
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    carried: dict[str, str] = {}  # the ensemble's tensors by the name that models know them by
    taken: set[str] = set()
    links: list[tuple[dict[str, str], dict[str, str]]] = []
    for model in models:
        fed: dict[str, str] = {}
        for each in model.inputs:
            if each.name in carried:
                fed[each.name] = carried[each.name]
                outputs.pop(carried[each.name], None)
                continue
            outer = whole(each, model, max_batch)
            key = each.name
            if key in taken and inputs.get(key) != outer:
                key = free_name(f"{model.graph}_{key}", taken)
            inputs[key] = replace(outer, name=key)
            fed[each.name] = key
            taken.add(key)
        links.append((fed, {}))
        for each in model.outputs:
            key = free_name(each.name, taken, model.graph)
            taken.add(key)
            outputs[key] = replace(whole(each, model, max_batch), name=key)
            links[-1][1][each.name] = key
        carried |= links[-1][1]
    read = {key for fed, _ in links for key in fed.values()}
    steps = [
        Step(model.name, fed, {o: key for o, key in made.items() if key in read or key in outputs})
        for model, (fed, made) in zip(models, links, strict=True)
    ]
    return Ensemble(name, max_batch, tuple(inputs.values()), tuple(outputs.values()), tuple(steps))


def whole(each: Tensor, model: Model, max_batch: int) -> Tensor:
    """Return a model's tensor as its ensemble has it: with a batch axis where that does not batch.

    The server compares dims between models, so nothing is flattened at the ensemble's ends.
    """
    batch = (-1,) if model.max_batch and not max_batch else ()
    return replace(each, dims=(*batch, *each.dims), flattened=False)


def free_name(name: str, taken: set[str], graph: str = "") -> str:
    """Return a name that is not taken: with the graph's before it, and a number behind it."""
    if name in taken and graph:
        name = f"{graph}_{name}"
    found, k = name, 2
    while found in taken:
        found, k = f"{name}_{k}", k + 1
    return found
