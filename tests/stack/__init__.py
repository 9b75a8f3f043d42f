"""The whole local stack: Ray, Serve, S3, real processes that are killed."""
