"""Estimators: one file per method, which follows the equation of the method.

``base`` is the interface of estimators, and ``sharded`` the shape of the nodes that compute scores.
"""

from attribution.estimators.base import Estimator
from attribution.estimators.guided import Guided
from attribution.estimators.lissa import LiSSA
from attribution.estimators.retrac import ReTrac
from attribution.estimators.self_influence import SelfInfluence
from attribution.estimators.tracin import TracIn

__all__ = ["Estimator", "Guided", "LiSSA", "ReTrac", "SelfInfluence", "TracIn"]
