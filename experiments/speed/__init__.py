"""Speed measurements for ``task=speed``: ratios of times to the plain forward and backward pass of the same draws (docs/speed.md).

This module imports nothing, so that runs that need one function do not import Lightning and the other libraries.
"""
