"""What readers see: a generation that is right takes the place of another, and is compared with its snapshot."""
