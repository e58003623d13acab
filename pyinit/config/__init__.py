"""What was asked for: pure functions from bytes to values."""
