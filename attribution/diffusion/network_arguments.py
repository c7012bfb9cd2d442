"""How the inputs of a denoiser map to the arguments of a network's ``forward``, whose names and order differ among networks."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from attribution.images.conditions import is_class

SHARED = ("attribution.images.conditions",)

_TIME, _CLASS, EMBEDDING = "timestep", "class_labels", "encoder_hidden_states"
"""The names that diffusers gives the arguments of its networks."""
_POOLED = "pooled_projections"
"""The second embedding of SD3 and Flux."""
_NEEDED = (_POOLED, "img_ids")
"""Arguments that networks need although their ``forward`` has a default for them: those of SD3 and Flux."""
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class ConditionError(ValueError):
    """A network and images that do not agree on a condition."""


class NetworkArguments:
    """The arguments of ``network.forward`` for an image, a time and a condition.

    The image is the first argument. The time is the argument ``timestep``, or the second one if there is none of this name. A
    condition is ``class_labels`` or ``encoder_hidden_states``, as diffusers has them, or the next argument if there is neither:

    - a class (int64 ``[B]``) is ``class_labels``. No class becomes ``null_class(network)``.
    - an embedding ``[B, L, D]``, or ``[B, D]`` as a sequence of one, is ``encoder_hidden_states``; without such an argument,
      ``[B, D]`` is ``class_labels`` (``class_embed_type="identity"`` of diffusers). It gets the dtype of the image.
    - an embedding ``[B, L, D + P]`` whose vectors all end in the same P numbers is ``encoder_hidden_states`` ``[B, L, D]`` and
      ``pooled_projections`` ``[B, P]`` of networks that take both (SD3), where P is ``pooled_projection_dim``.
    """

    def __init__(self, network: nn.Module):
        self.name, self.null_class = type(network).__name__, null_class(network)
        self.embeds_classes = getattr(network, "class_embedding", network) is not None
        parameters = list(inspect.signature(network.forward).parameters.values())
        self.names = [p.name for p in parameters if p.kind in _POSITIONAL]
        self.any = any(p.kind == inspect.Parameter.VAR_POSITIONAL for p in parameters)
        named = (*_POSITIONAL, inspect.Parameter.KEYWORD_ONLY)
        self.required = [p.name for p in parameters if p.name in _NEEDED or (p.default is p.empty and p.kind in named)]
        self.by_name = {_CLASS, EMBEDDING} & set(self.names)
        self.takes_pooled = _POOLED in self.names
        self.sizes = _sizes(network) if self.takes_pooled else None
        self.time_is_named = _TIME in self.names[2:]  # in the second place it needs no name

    def __call__(self, x: Tensor, time: Tensor, condition: Tensor | None) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Positional arguments, and arguments by name.

        Raises:
            ConditionError: the network does not take the condition, or needs one.
            ValueError: the network needs something else.
        """
        if self.time_is_named:
            inputs, named = (x,), {_TIME: time}
        else:
            inputs, named = (x, time), {}
        if condition is not None:
            if is_class(condition) and self.null_class is not None:
                condition = torch.where(condition < 0, self.null_class, condition)
            elif not is_class(condition):
                condition = condition.to(x.dtype)
            if self.by_name:
                named |= self._by_name(condition)
            else:
                inputs = self._in_order(inputs, condition)
        self._check_required(len(inputs), named, condition)
        return inputs, named

    def _by_name(self, condition: Tensor) -> dict[str, Tensor]:
        if is_class(condition):
            if _CLASS not in self.by_name or EMBEDDING in self.required:
                raise ConditionError(
                    f"the images have classes, but {self.name} takes embeddings ({EMBEDDING}): use these as conditions"
                )
            if not self.embeds_classes:
                raise ConditionError(
                    f"the images have classes, but {self.name} has no table of them: set num_class_embeds to the number of classes "
                    "plus one, for a dropped class, or use images without a condition"
                )
            return {_CLASS: condition}
        if self.sizes is not None:
            return self._with_pooled(condition, *self.sizes)
        if EMBEDDING in self.by_name:
            return {EMBEDDING: condition if condition.dim() > 2 else condition.unsqueeze(1)}
        shape = _shape(condition)
        if not self.embeds_classes:
            raise ConditionError(
                f"the images have embeddings {shape}, but {self.name} takes none: use a network with {EMBEDDING}, or images "
                "without a condition"
            )
        if condition.dim() != 2 or self.null_class is not None:
            raise ConditionError(
                f"the images have embeddings {shape}, but {self.name} takes classes ({_CLASS}): use these as conditions"
            )
        return {_CLASS: condition}

    def _with_pooled(self, condition: Tensor, size: int, pooled: int) -> dict[str, Tensor]:
        if pooled == 0:
            raise ConditionError(
                f"{self.name} has no room for a pooled embedding ({_POOLED}): give the images one, and its size to the network"
            )
        if condition.dim() != 3 or condition.shape[-1] != size + pooled:
            raise ConditionError(
                f"the images have embeddings {_shape(condition)}, but {self.name} takes sequences of {size} numbers, each followed "
                f"by the {pooled} numbers of a pooled embedding ({_POOLED}): use embeddings B×L×{size + pooled}"
            )
        return {EMBEDDING: condition[..., :size], _POOLED: condition[:, 0, size:]}

    def _in_order(self, inputs: tuple[Tensor, ...], condition: Tensor) -> tuple[Tensor, ...]:
        if len(inputs) + self.time_is_named >= len(self.names) and not self.any:
            raise ConditionError(
                f"the images have a condition, but {self.name}.forward takes none: use images without a condition, or a "
                "network that is called as network(x, time, condition)"
            )
        return (*inputs, condition)

    def _check_required(self, positional: int, named: dict[str, Any], condition: Tensor | None) -> None:
        given = {*self.names[:positional], *named}
        needed = [name for name in self.required if name not in given]
        if condition is None and _CLASS in self.by_name and self.null_class is not None:
            needed = [_CLASS]
        of_condition = self.names[1:2] if self.time_is_named else self.names[2:3]
        of_condition += [_POOLED] if self.sizes is not None else []
        if condition is None and needed and needed[0] in (*self.by_name, *of_condition):
            raise ConditionError(
                f"{self.name} needs a condition of each image ({needed[0]}), but the images have none: use images with conditions"
            )
        if needed:
            raise ValueError(
                f"{self.name}.forward needs {', '.join(needed)}, which denoisers are not called with: choose a network that needs "
                "the image, the time and at most one condition"
            )


def _shape(condition: Tensor) -> str:
    return "×".join(["B", *map(str, condition.shape[1:])])


def _sizes(network: nn.Module) -> tuple[int, int] | None:
    """The numbers in a vector of the sequence and in the pooled embedding; None: the network does not say."""
    config: Any = getattr(network, "config", None) or {}
    sizes = config.get("joint_attention_dim"), config.get("pooled_projection_dim")
    return None if None in sizes else sizes


def null_class(network: nn.Module) -> int | None:
    """The class that stands for no class: one after those of the data.

    An attribute ``null_class`` of a network of one's own, or the last row of the table of classes of diffusers' networks:
    ``num_embeds_ada_norm`` of transformers, which add a row for it; ``num_class_embeds`` - 1 of U-Nets. None: there is no table.
    """
    config: Any = getattr(network, "config", None) or {}
    own = getattr(network, "null_class", None)
    if own is not None or not hasattr(config, "get"):
        return own
    if config.get("num_embeds_ada_norm") is not None:
        return config["num_embeds_ada_norm"]
    return None if config.get("num_class_embeds") is None else config["num_class_embeds"] - 1
