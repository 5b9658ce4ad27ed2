"""What assets are handed besides their inputs: how snapshots are loaded, progress shown, and people told."""
