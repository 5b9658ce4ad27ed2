"""What tests share: a sandbox, stand-ins, toys, and clients that read meanwhile."""
