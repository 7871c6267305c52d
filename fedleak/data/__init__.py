"""Where private images come from, and how they are split into shards."""

from fedleak.data.base import ImageSet, Source, sources
from fedleak.data.federated import FederatedData, federated_data

__all__ = ["FederatedData", "ImageSet", "Source", "federated_data", "sources"]
