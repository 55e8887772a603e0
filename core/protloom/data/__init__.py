"""From sequence files to batches: readers, cleaning policies, the store, the sampler and the loader."""
