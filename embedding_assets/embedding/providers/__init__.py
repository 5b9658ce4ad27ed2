"""Who makes vectors: a provider a module, what they are asked for, and the files of the bundled models.

Here belongs what one request is, over a wire or in this process. How many requests there are, when they leave and what
an error means for the run belongs to `engine`, which also checks what comes back. The tests' `contracts` say what every
provider promises.
"""
