"""Where states are kept: knows nothing of actors. One backend a file."""
