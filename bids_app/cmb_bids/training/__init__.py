"""The reproducible training workflow behind the shipped networks (``cmb-lab train``).

`cases` simulates a scan and runs the pipeline on it, `shards` keeps what comes out, `labels` says
what each candidate is, `fit` trains, `scoring` calibrates and measures, `card` writes the model
card. Everything is simulated: there are no real labelled scans here.
"""
