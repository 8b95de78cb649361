"""Files to JSON records: streaming JSON, gzip, Parquet and Arrow."""
