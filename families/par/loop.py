"""PAR's schedule: the first tokens one after another, then groups of them, each a step."""

from __future__ import annotations

import numpy as np

from ...runtime.sampling import Tokens
from ..shared.llama.loop import LlamaLoop
from .spec import ParSpec


class ParLoop(LlamaLoop):
    """The graphs of a PAR and the loop over its groups of tokens.

    The first step takes the class, the next ones the token before, until `group` tokens are there;
    then a step takes the last of them with the special tokens, and all later ones take the group
    before.
    """

    spec: ParSpec

    def taken(self, k: int, chosen: Tokens) -> Tokens:
        """Return what step k takes, [rows, n]."""
        if k != self.spec.group:
            return chosen
        special = np.tile(self.spec.special, (len(chosen), 1))
        return np.concatenate([chosen, special], axis=1)
