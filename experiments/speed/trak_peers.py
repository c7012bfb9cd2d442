"""TRAK by other libraries on the same problem: they are imported only if they are installed."""

import logging
from importlib import import_module
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from attribution.measurements import Measure
from experiments.speed.peers import MeanLoss, Output, functional, installed
from experiments.speed.problem import DAMPING, Method, Problem, Side

# Both libraries divide gradients by the root of the number of parameters, and add their ridge to ΦᵀΦ, which is N times our
# covariance. traker projects with entries of variance 1, dattri with 1/k, as this program does.


def traker_scores(problem: Problem, k: int) -> Method | None:
    """Return TRAK with ``k`` features by traker, in float32, with its other default settings; None if it is not installed."""
    if not installed("traker", "trak", "traker"):
        return None

    def run() -> Tensor:
        network, train, queries = problem.network(), problem.train, problem.queries
        loss = MeanLoss(network, problem.objective)
        state = loss.state_dict()
        with TemporaryDirectory() as folder, functional():
            traker = import_module("trak").TRAKer(
                loss,
                task=Output(),
                train_set_size=len(train),
                save_dir=folder,
                device=problem.execution.torch_device().type,
                proj_dim=k,
                logging_level=logging.ERROR,
                use_half_precision=False,
                lambda_reg=k * _ridge(problem),
            )
            traker.load_checkpoint(state, model_id=0)
            for batch in _batches(train, problem.objective):
                traker.featurize(batch, num_samples=len(batch[0]))
            traker.finalize_features()
            traker.start_scoring_checkpoint("queries", state, 0, num_targets=len(queries))
            for batch in _batches(queries, problem.objective):
                traker.score(batch, num_samples=len(batch[0]))
            return torch.as_tensor(traker.finalize_scores("queries").copy()).T

    return run


def dattri_scores(problem: Problem, k: int) -> Method | None:
    """Return TRAK with ``k`` features by dattri's ``TRAKAttributor``; None if it is not installed."""
    if not installed("dattri", "dattri", "dattri"):
        return None

    def run() -> Tensor:
        network = problem.network()
        loss = MeanLoss(network, problem.objective)
        task = import_module("dattri.task").AttributionTask(
            lambda weights, batch: functional_call(loss, weights, batch),
            loss,
            checkpoints=loss.state_dict(),
        )
        device = problem.execution.torch_device()
        attributor = import_module("dattri.algorithm.trak").TRAKAttributor(
            task,
            correct_probability_func=lambda weights, batch: torch.zeros(1, device=device),  # the factor 1 - p is 1
            projector_kwargs={"proj_dim": k, "device": str(device)},
            device=str(device),
            regularization=_ridge(problem),
        )
        with functional():
            attributor.cache(_loader(problem.train, problem.objective))
            return attributor.attribute(_loader(problem.queries, problem.objective)).T

    return run


def _ridge(problem: Problem) -> float:
    return DAMPING * len(problem.train) / problem.trained.parameter_count


def _batches(side: Side, measure: Measure) -> list[tuple[Tensor, ...]]:
    """The arguments of the measure in batches, each ``[batch, K, ..]``, without the condition."""
    return [
        tuple(tensor.unflatten(0, (-1, side.draws.count)) for tensor in side.inputs(measure, rows)[:3]) for rows in side.batches()
    ]


def _loader(side: Side, measure: Measure) -> Any:
    tensors = [torch.cat(parts) for parts in zip(*_batches(side, measure), strict=True)]
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*tensors), batch_size=side.batch)
