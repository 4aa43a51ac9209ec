"""All libraries give the same numbers: ``guises`` x ``functions``, as a table and as property tests."""
