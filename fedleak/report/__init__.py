"""What a run leaves for people to read: the HTML page, a picture for a README, a table for the terminal."""
