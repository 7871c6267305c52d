"""Linear estimation of images from their gradients, for networks whose matching loss misleads descent."""
