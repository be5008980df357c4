"""What the methods are worth: the learning benchmark, its partitions, settings, table and picture."""
