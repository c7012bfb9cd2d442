"""Diffusion models: the noise schedule, the denoiser's calling convention, and samplers."""

from attribution.diffusion.schedule import Denoiser, NoiseSchedule, denoiser

__all__ = ["Denoiser", "NoiseSchedule", "denoiser"]
