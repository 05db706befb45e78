"""Common-subexpression elimination: equal values of a graph are computed once."""

from typing import Any

import torch
from torch import fx


def merge_equal(graph: fx.Graph) -> None:
    """Compute equal values once; the forward-mode pass repeats the forward's values.

    Inductor merges equal elementwise work within a kernel, but not two convolutions of the same input.
    """
    aliases = (torch.ops.aten.alias.default, torch.ops.aten.detach.default)
    results = {node for last in graph.nodes if last.op == "output" for node in last.all_input_nodes}
    known: dict[tuple[Any, str, str], fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or node in results or not _repeatable(node.target):
            continue
        if node.target in aliases:
            same = node.args[0]
        else:
            same = known.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)
        if same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)


def _repeatable(target: Any) -> bool:
    if not isinstance(target, torch._ops.OpOverload):
        return getattr(target, "__name__", "") == "getitem"
    return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags


def merging_pass() -> Any:
    """`merge_equal` as a pass of inductor, with an identifier for inductor's cache."""
    from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

    class Merge(CustomGraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            merge_equal(graph)

        def uuid(self) -> Any:
            return get_hash_for_files((__file__,))

    return Merge()
