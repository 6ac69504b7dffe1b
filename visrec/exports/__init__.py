"""The published lists, copied to where a shop reads them: PostgreSQL, Redis, DynamoDB, one file."""
