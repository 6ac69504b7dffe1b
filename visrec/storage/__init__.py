"""Local paths and s3://: conditional writes, credentials, table schemas, leases."""
