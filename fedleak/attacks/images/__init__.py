"""What attacks know of images: coordinates, priors, registration, synthetic ones."""
