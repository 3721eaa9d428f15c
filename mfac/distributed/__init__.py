"""Windows whose columns are spread over processes."""
