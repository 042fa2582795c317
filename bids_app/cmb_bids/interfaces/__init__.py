"""The stages as nipype interfaces: typed file contracts round one array function each."""
