"""From measured trials to an answer: the front, its hypervolume, the point to take and what it won.

Pure arithmetic on records: nothing here trains, measures, draws or opens a database.
"""
