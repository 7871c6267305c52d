"""The server: any Flower strategy, made reproducible by a referee, and each of its rounds audited and entered in a ledger."""
