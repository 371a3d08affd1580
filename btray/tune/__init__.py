"""Ray Tune: search of settings that train better."""
