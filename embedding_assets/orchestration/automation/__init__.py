"""What starts runs without a person: sensors, schedules, and the jobs that they start.

Here belongs when something runs. What a run does belongs to the assets, and to the modules that jobs call.
"""
