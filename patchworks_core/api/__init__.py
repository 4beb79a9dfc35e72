"""What people call, and how the arguments of a call become a plan and a job.

`patchworks_core` exports it.
"""
