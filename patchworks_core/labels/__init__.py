"""Label images after the merge: filters, holes, sizes, relations, measurements."""
