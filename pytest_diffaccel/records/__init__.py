"""What is kept: measurements (SQL), winners (golden JSON) and the environments both belong to."""
