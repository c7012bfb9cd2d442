"""Images with their ids, and the draws (timestep, noise, flip) at which they are evaluated."""

from attribution.images.images import Images, ImageSet, Trajectories

__all__ = ["ImageSet", "Images", "Trajectories"]
