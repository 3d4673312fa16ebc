"""The worker process: takes jobs from the queue, runs them in one engine, and publishes the results.

Every job gets exactly one result or is handed back. The jobs of a killed worker continue elsewhere from their last
snapshots. Nothing here imports SQL or Discord.
"""
