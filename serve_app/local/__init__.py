"""The whole service on one machine: S3 endpoint, Ray, Serve, and the demo's model and data."""
