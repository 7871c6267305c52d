"""Many runs as one table: a sweep's file, its cells side by side, verdicts on each defense, the leaderboard."""
