"""K-FAC influence by other libraries on the same problem: they are imported only if they are installed."""

import logging
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attribution.diffusion import denoiser
from experiments.speed.peers import Flat, MeanLoss, functional, installed, kronecker_parameters, network_batch
from experiments.speed.problem import DAMPING, Method, Problem, Side


def kronfluence_scores(problem: Problem, positions_summed: bool = False) -> Method | None:
    """Return K-FAC influence by kronfluence; None if it is not installed.

    Its trackers see one row for every draw. Its hook for gradients of single rows averages over the draws of an image, on both
    sides. kronfluence divides B by the number of positions, as well as A. ``positions_summed`` undoes this for B, so that B ⊗ A is
    the curvature of the mean loss.
    """
    if not installed("kronfluence", "kronfluence", "kronfluence"):
        return None
    warnings.filterwarnings("ignore", module="kronfluence")

    def run() -> Tensor:
        analyzer, arguments = import_module("kronfluence.analyzer"), import_module("kronfluence.arguments")
        task = _kronfluence_task(problem)
        with TemporaryDirectory() as folder:
            network = _Rows(problem.network())
            # It offers rows of several inputs to its layers, whose names it takes from the network's modules.
            analysis = analyzer.Analyzer(
                "speed",
                analyzer.prepare_model(network, task),
                task,
                cpu=problem.execution.torch_device().type == "cpu",
                log_level=logging.ERROR,
                disable_tqdm=True,
                output_dir=folder,
            )
            factor_arguments = arguments.FactorArguments(strategy="kfac")
            options: dict[str, Any] = {"factors_name": "kfac", "factor_args": factor_arguments}
            batch = problem.batch
            curvature = _Rowwise(problem.curvature, problem.probe)
            analysis.fit_covariance_matrices(dataset=curvature, per_device_batch_size=batch, **options)
            if positions_summed:
                _count_inputs(Path(folder), len(curvature) * problem.draws)
            analysis.perform_eigendecomposition(**options)
            analysis.compute_pairwise_scores(
                scores_name="scores",
                factors_name="kfac",
                query_dataset=_Rowwise(problem.queries, problem.objective),
                train_dataset=_Rowwise(problem.train, problem.objective),
                per_device_query_batch_size=len(problem.queries),
                per_device_train_batch_size=batch,
                score_args=arguments.ScoreArguments(damping_factor=DAMPING),
            )
            return analysis.load_pairwise_scores("scores")["all_modules"]

    return run


def curvlinops_scores(problem: Problem) -> Method | None:
    """Return K-FAC influence by curvlinops' factors and inverse, with gradients by ``vmap``; None if it is not installed.

    curvlinops draws the pseudo-gradients itself, so its scores differ by the noise of the factors.
    """
    if not installed("curvlinops", "curvlinops", "curvlinops-for-pytorch"):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        curvlinops = import_module("curvlinops")

    def run() -> Tensor:
        network = problem.network()
        parameters = kronecker_parameters(network)
        side, process = problem.curvature, problem.trained.process
        data = []
        for rows in side.batches():
            x, t, noise, _ = side.inputs(problem.objective, rows)
            data.append(network_batch(process, x, t, noise))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            curvature = curvlinops.KFACLinearOperator(
                Flat(network),
                nn.MSELoss(),
                list(parameters.values()),
                data,
                fisher_type="mc",
                kfac_approx="expand",
                separate_weight_and_bias=False,
                check_deterministic=False,
                num_data=len(side) * problem.draws,
                batch_size_fn=lambda batch: len(batch["time"]),
            )
            inverse = curvlinops.KFACInverseLinearOperator(curvature, damping=DAMPING, use_exact_damping=True)
            queries = torch.cat(list(_vmapped(network, parameters, problem, problem.queries)))
            blocks = queries.T.split([p.numel() for p in parameters.values()])
            columns = [block.unflatten(0, p.shape) for block, p in zip(blocks, parameters.values(), strict=True)]
            solved = torch.cat([block.flatten(0, -2) for block in inverse @ columns])
        return torch.cat([gradients @ solved for gradients in _vmapped(network, parameters, problem, problem.train)]).T

    return run


def _vmapped(network: nn.Module, parameters: dict[str, nn.Parameter], problem: Problem, side: Side) -> Iterator[Tensor]:
    """Yield the gradients of the mean over the draws of each image, ``[batch, P]``, one batch after another."""
    loss = MeanLoss(network, problem.objective)
    held = {f"model.{name}": p.detach() for name, p in parameters.items()}

    def cost(parameters: dict[str, Tensor], *inputs: Tensor) -> Tensor:
        return torch.func.functional_call(loss, parameters, inputs)

    for rows in side.batches():
        x, t, noise = (tensor.unflatten(0, (-1, problem.draws)) for tensor in side.inputs(problem.objective, rows)[:3])
        with functional():
            gradients = torch.func.vmap(torch.func.grad(cost), in_dims=(None, 0, 0, 0))(held, x, t, noise)
        yield torch.cat([gradient.flatten(1) for gradient in gradients.values()], 1)


class _Rowwise(torch.utils.data.Dataset):
    """Images as a dataset for kronfluence: an item has the inputs of all draws of an image."""

    def __init__(self, side: Side, measure: Any):
        x, t, noise, _ = side.inputs(measure)
        self.tensors = [tensor.unflatten(0, (len(side), -1)) for tensor in (x, t, noise)]

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, at: int) -> tuple[Tensor, ...]:
        return tuple(tensor[at] for tensor in self.tensors)


class _Rows(nn.Module):
    """The network without the sum over draws: a module for kronfluence to wrap."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model


def _kronfluence_task(problem: Problem) -> Any:
    """The problem in kronfluence's interface."""
    Task = import_module("kronfluence.task").Task

    class DrawsTask(Task):
        enable_post_process_per_sample_gradient = True

        def compute_train_loss(self, batch: Any, model: _Rows, sample: bool = False) -> Tensor:
            measure = problem.probe if sample else problem.objective
            return measure(denoiser(model.model), *(tensor.flatten(0, 1) for tensor in batch)).sum()

        def compute_measurement(self, batch: Any, model: _Rows) -> Tensor:
            return self.compute_train_loss(batch, model)

        def post_process_per_sample_gradient(self, module_name: str, gradient: Tensor) -> Tensor:
            return gradient.unflatten(0, (-1, problem.draws)).mean(1)

    return DrawsTask()


def _count_inputs(folder: Path, inputs: int) -> None:
    """Make kronfluence divide the stored sums of B by the number of inputs."""
    (path,) = folder.rglob("num_gradient_covariance_processed.safetensors")
    save_file({name: torch.full_like(count, inputs) for name, count in load_file(path).items()}, path)
