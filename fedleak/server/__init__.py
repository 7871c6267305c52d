"""The server: any Flower strategy, made reproducible by a referee, watched by an honest-but-curious onlooker."""
