"""Data sets: preparing, storing and loading them. Images are uint8 arrays of shape (N, 32, 32, 3)."""
