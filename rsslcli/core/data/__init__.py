"""Data sets: preparing, storing and loading them. Images are uint8 (N, S, S, 3), S = 32, 64 or 224."""
