"""What a client computed, as a function of the batch that an attacker guesses."""
