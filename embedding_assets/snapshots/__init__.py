"""The ground: immutable parts named by what they were made from, and the logs that commit them, in object stores.

Here belongs the format (docs/format.md), the stores, replication and garbage collection. It knows no documents, models
or databases: a stage of the pipeline is a name and a key to it.
"""
