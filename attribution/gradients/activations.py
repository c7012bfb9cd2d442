"""The memory that a pass with recorded layers takes for each network input."""

import torch
from torch import Tensor, nn

from attribution.gradients import hooks
from attribution.measurements import Inputs, Measure

SHARED = ("attribution.gradients.hooks",)


def activation_bytes(
    model: nn.Module,
    recorded: hooks.Recorded,
    measure: Measure,
    inputs: Inputs,
    on_layer: hooks.OnLayer = lambda name, calls: None,
) -> float:
    """Return the bytes per input that a pass over ``inputs`` keeps until its backward pass: for autograd, and as inputs of layers.

    The count follows from shapes alone, so it is the same on every machine. ``on_layer`` is that of ``hooks.run``.
    """
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers(), *inputs) if tensor is not None}
    kept: dict[int, torch.UntypedStorage] = {}  # holding a storage keeps its number from being used again

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    def keep_inputs(name: str, calls: list[hooks.Call]) -> None:
        for call in calls:
            for tensor in (call.input, *call.layer.kept):
                keep(tensor)
        on_layer(name, calls)

    autocast = torch.autocast(inputs.t.device.type, enabled=False)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hooks.run(model, recorded, measure, inputs, keep_inputs, autocast)
    return sum(storage.nbytes() for storage in kept.values()) / len(inputs.t)
