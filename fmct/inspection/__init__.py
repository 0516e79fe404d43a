"""What a scan, store, run or encoder is, and whether it is sane."""
