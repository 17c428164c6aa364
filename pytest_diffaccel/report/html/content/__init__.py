"""What a report says: findings, rows, words."""
