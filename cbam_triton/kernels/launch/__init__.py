"""From a call to its launches: device facts, tile sizes, plans, memory, launchers.

The operators import it; it imports the schedules, the stages and spec.
"""
