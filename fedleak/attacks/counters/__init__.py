"""What an attacker does who knows a defense and its parameters: one file for each defense."""
