"""Which parameters of a model scores are of."""

from collections.abc import Iterable

from attribution.curvature.factors import without_factors
from attribution.curvature.kfac import KroneckerCurvature
from attribution.estimators.base import Estimator
from attribution.models.trained import Trained


def coverage(trained: Trained, estimators: Iterable[Estimator]) -> str | None:
    """A sentence on the parameters with gradients, and those that K-FAC leaves out; None if no estimator uses gradients."""
    parts = [part for estimator in estimators for part in (estimator.parts.values() or [estimator])]
    estimators = [part for part in parts if part.GRADIENTS]
    if not estimators:
        return None
    count, total = trained.parameter_count, sum(p.numel() for p in trained.outline.parameters())
    said = f"all {total:,} parameters" if count == total else f"{count / total:.1%} of the parameters: {count:,} of {total:,}"
    if any(isinstance(getattr(estimator, "curvature", None), KroneckerCurvature) for estimator in estimators):
        left_out = without_factors(trained)
        if left_out:
            said += f"; Kronecker factors leave out {sum(left_out.values()) / count:.1%} of these ({', '.join(left_out)})"
    return f"Gradients are of {said}."
