"""What the seams know of an example: its shape, how a batch becomes model inputs, what is measured and shown."""
