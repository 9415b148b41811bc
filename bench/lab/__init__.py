"""The tuning lab: the space of a problem, trials that are checked and timed, and what they say.

`space` and `case` say what is tried, `worker` and `clock` try it, `trials` keeps it; `distill`, `compare`, `report` and
`export` read what was kept.
"""
