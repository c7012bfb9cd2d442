"""Curvature of the training loss: Kronecker factors, their eigenbases, and the exact matrix of small models."""

from attribution.curvature.basis import Basis, KroneckerBasis
from attribution.curvature.ekfac import EKFAC
from attribution.curvature.exact import DenseBasis, ExactGGN
from attribution.curvature.kfac import KFAC

__all__ = ["EKFAC", "KFAC", "Basis", "DenseBasis", "ExactGGN", "KroneckerBasis"]
