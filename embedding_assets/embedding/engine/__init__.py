"""The embedding engine: texts to checked unit vectors through a provider, at its quota and through its faults.

`engine.embed` is its one verb: everything else here serves it. It keeps nothing: the caller makes what arrives durable.
"""
