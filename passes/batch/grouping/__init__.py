"""FlexSP's steps: buckets, micro-batches, groups of ranks."""
