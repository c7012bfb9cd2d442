"""Estimators: one file per method, each readable against its equation."""

from attribution.estimators.base import Estimator
from attribution.estimators.guided import Guided
from attribution.estimators.lissa import LiSSA
from attribution.estimators.retrac import ReTrac
from attribution.estimators.self_influence import SelfInfluence
from attribution.estimators.tracin import TracIn

__all__ = ["Estimator", "Guided", "LiSSA", "ReTrac", "SelfInfluence", "TracIn"]
