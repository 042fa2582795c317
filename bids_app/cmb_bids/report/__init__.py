"""Pages to read in a browser: one participant's scans, and the whole cohort."""
