"""The static audit: what a bundle would do, without doing it."""
