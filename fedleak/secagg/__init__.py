"""Flower's SecAgg+ through fedleak's own grid."""
