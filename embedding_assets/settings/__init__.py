"""The settings: one YAML file and the environment, validated; every problem is named with its line and its cure.

Here belongs what a deployment is made of, as values. What is opened from them belongs to `operations.deployment`.
"""
