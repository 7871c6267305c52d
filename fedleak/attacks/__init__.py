"""Attacks: one file each, plus the loop, the label rules and the closed forms that they share."""
