"""Name the node of a graph at which OpenVINO stops: it says the operator alone."""

from __future__ import annotations

import re
from pathlib import Path

from ...graph.io import read_graph


def node_text(path: Path, said: str) -> str:
    """Return the first node that OpenVINO's words name, or whose operator they do, for a message.

    Empty if it names neither.
    """
    for node in read_graph(path).graph.all_nodes():
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        if any(text and is_named(text, said) for text in (node.name, operator)):
            return f"at {node.name or 'a node without a name'} ({operator}): "
    return ""


def is_named(text: str, said: str) -> bool:
    """Return whether a name stands in a text, and not as a part of a longer one."""
    return re.search(rf"(?<![\w.]){re.escape(text)}(?![\w.])", said) is not None
