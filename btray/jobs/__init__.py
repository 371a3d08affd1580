"""Commands of btray as jobs of a cluster, by Ray's job interface."""
