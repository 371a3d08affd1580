"""The audit: what in a data set would make scores too good, or wrong."""
