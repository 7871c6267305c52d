"""Where a federation runs. All of Flower's private or unstable names live in this package."""
