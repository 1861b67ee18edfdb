"""What a reader sees of an experiment folder: tables, figures and one HTML page."""
