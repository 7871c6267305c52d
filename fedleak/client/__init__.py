"""The clients: local training, the defenses' Flower mod, and the answers to the evaluation's queries."""
