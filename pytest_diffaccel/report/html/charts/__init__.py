"""What a report draws: charts, and pictures side by side."""
