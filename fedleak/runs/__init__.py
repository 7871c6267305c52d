"""The run folder, and what its rows say."""
