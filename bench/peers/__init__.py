"""The peers, each a script that runs in an environment of their own and does with the same documents what we do."""
