"""The LR bench: tuning on Ray, the policy database, the monitor of running jobs."""
