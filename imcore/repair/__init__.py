"""Repair is one mechanism: the desired state of a group, what differs from it, and what makes the two alike.

    window   reads the journals and Redis          state   the two sides as values
    compare  reads both sides, returns the diff    diff    what differs, as people see it
    group_readers, small_groups   what `compare` reads of one group, in pages, and of many small ones at once
    desired  reads both sides, returns the plan    merge   the desired state where both sides know something
    apply    carries the plan out                  orders  what the plan does to spans

`check` reports the diff. With `--repair` it applies the plan where something differs, and compares again. A
reconciliation (`watermarks`) does the same for a partition whose Redis is older than SQL. A rebuild applies plans to
groups that Redis has, and brings the others back in bulk (`bulk_apply`). `check --repair` and a
reconciliation write nothing to a group in which nothing differs: what `check` calls sound, they do not change.
"""
