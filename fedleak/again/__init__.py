"""Attack the captures of a finished run again, here or spread over processes and machines."""
