"""Where a federation runs. All of Flower's private or unstable names live in this package.

Its simulation engine and the in-process grid rest on names that Flower does not promise to keep: so `flwr` is kept
to the versions that are tested (:mod:`fedleak.process.versions`).
"""
