"""Who makes vectors: a provider a module, what they are asked for, and the files of the bundled models."""
