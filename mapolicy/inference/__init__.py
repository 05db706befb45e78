"""A trained network in use: its file, predictions, evaluation, export to other programs."""
