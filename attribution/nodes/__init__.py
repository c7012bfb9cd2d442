"""Nodes: computations whose identity is the content of their fields, and the artifacts that they make."""

from attribution.nodes.arrays import Arrays
from attribution.nodes.artifact import Artifact
from attribution.nodes.identity import (
    SOURCE,
    added,
    class_identity,
    describe,
    describe_fields,
    digest,
    execution,
    fingerprint_of,
    key,
    short_name,
)
from attribution.nodes.memory import InMemory
from attribution.nodes.node import A, Cost, Get, JointNode, Node, SharingNode, groups

__all__ = [
    "SOURCE",
    "A",
    "Arrays",
    "Artifact",
    "Cost",
    "Get",
    "InMemory",
    "JointNode",
    "Node",
    "SharingNode",
    "added",
    "class_identity",
    "describe",
    "describe_fields",
    "digest",
    "execution",
    "fingerprint_of",
    "groups",
    "key",
    "short_name",
]
