"""What a run's results say, in numbers, plots and words."""
