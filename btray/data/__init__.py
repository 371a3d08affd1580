"""From sources to one Parquet data set, and from there to batches."""
