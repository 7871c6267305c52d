"""What linear algebra says before any optimiser starts: closed forms and the identifiability count."""
