"""Label rules: from an update, without images, to the labels behind it; one rule a file."""
