"""Nodes: computations whose identity is the content of their fields, and the artifacts that they make."""

from attribution.nodes.node import (
    A,
    Artifact,
    Cost,
    Get,
    InMemory,
    JointNode,
    Node,
    describe,
    digest,
    execution,
    groups,
)

__all__ = ["A", "Artifact", "Cost", "Get", "InMemory", "JointNode", "Node", "describe", "digest", "execution", "groups"]
