"""The pages of sweeps and of the leaderboard."""
